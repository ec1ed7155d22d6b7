"""What follows from a study alone, before any site is asked: the noise that its budget buys, and where."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from common.data.binning import SIGNAL
from common.data.encoding import make_grids
from common.data.histograms import resolutions
from common.models.releases import one_way_layout
from common.study import STEPS, Study
from common.wire.agenda import planned_tables
from server.noise_controller import share_plan
from server.plausibility import units_allowed

ONE_WAY: Final = "one_way"
_BINS: Final = 8
"""Of a number: as many as show more of it than where its middle is."""


@dataclass(frozen=True)
class Planned:
    """Counts that every site will release, all measurements of them taken together.

    name: of the kind of release.
    tables: how many tables a unit is counted in.
    share: of a site's budget.
    stddev: of the noise of one count at a site that spends the study's epsilon, in units; where it is largest, since
        tables of two channels have less (see `common.wire.agenda.EMPHASIS`).
    """

    name: str
    tables: int
    share: float
    stddev: float

    def summed(self, sites: int) -> float:
        """Standard deviation of the noise of one count, summed over sites."""
        return self.stddev * float(sites**0.5)


def planned_releases(study: Study) -> list[Planned]:
    """The counts of a study; how they are spread over measurements does not change what all of them say together."""
    privacy, accountant = study.privacy, study.accountant
    bound = accountant.bound(epsilon=privacy.epsilon, delta=privacy.delta)
    layout = one_way_layout(study)
    # Less than all where `max_share` keeps measurements from spending it.
    spent = sum(_shares(study))
    share = privacy.one_way_share
    noise = accountant.noise_stddev(squared_sensitivity=layout.n_tables, spend=share * bound, sampling=1.0)
    planned = [Planned(ONE_WAY, layout.n_tables, share, noise)]
    for name, part in planned_tables(study).items():
        share = (1 - privacy.one_way_share) * part.share * spent
        planned.append(Planned(name, len(part.numbers), share, part.noise_stddev(accountant, spend=share * bound)))
    return planned


def plan_of(study: Study, sites: int) -> dict[str, str | int | float]:
    """What follows from the study alone: the same for every table."""
    privacy, accountant = study.privacy, study.accountant
    one_way, *parts = planned_releases(study)
    layout = one_way_layout(study)
    plan: dict[str, str | int | float] = {
        "digest": study.digest(),
        "guarantee": f"({privacy.epsilon:g}, {privacy.delta:g})-DP at each site",
        "unit": f"add or remove one {study.unit.name}",
        "accountant": ", ".join(f"{name} {value}" for name, value in accountant.as_dict().items()),
        "columns_beside_the_label": len(study.features),
        "channels": len(study.channels),
        "fine_cells": layout.n_cells,
        "units_that_a_site_may_state": units_allowed(study),
        "noise_of_a_one_way_count_at_a_site": one_way.stddev,
    }
    if units := _units_to_see_numbers(study, one_way.summed(sites)):
        plan[f"units_that_fill_{_BINS}_bins_of_every_number"] = units
    for part in parts:
        plan[f"tables_of_{part.name}"] = part.tables
        plan[f"noise_of_a_count_of_{part.name}_at_a_site"] = part.stddev
        plan[f"noise_of_a_count_of_{part.name}_summed"] = part.summed(sites)
    plan["budget_by_measurement"] = ", ".join(f"{share:.0%}" for share in _shares(study))
    return plan


def what_if(
    study: Study,
    *,
    epsilons: Sequence[float],
    units: Sequence[int],
    sites: Sequence[int],
    rounds: Sequence[int],
    cell: float,
) -> Iterable[dict[str, Any]]:
    """The noise of each release for every combination, one row each, by the plan that `check` shows.

    Args:
        study: what is the same in all of them.
        epsilons: budgets of every site.
        units: of all sites together.
        sites: that have them.
        rounds: measurements over which the discriminators' budget is spread.
        cell: share of all units that a cell of a table holds, for its relative error; above 0, at most 1.

    Returns:
        Rows with the noise of one count summed over all sites: in units, as a share of all units, and as the relative
        error of a cell: of all measurements together, and of the first and the last of them alone.

    Raises:
        StudyError: a value that a study may not have.
    """
    for epsilon, count in product(epsilons, rounds):
        changed = study.with_overrides(privacy={"epsilon": epsilon}, noise={"rounds": count})
        shares = _shares(changed)
        planned = planned_releases(changed)
        for total, parties in product(units, sites):
            for release in planned:
                whole = release.summed(parties)
                # Noise falls with the root of what is spent; a one-way table is measured once.
                ends = (1.0, 1.0) if release.name == ONE_WAY else (shares[0] / sum(shares), shares[-1] / sum(shares))
                first, last = (whole / share**0.5 for share in ends)
                yield {
                    "epsilon": epsilon,
                    "units": total,
                    "sites": parties,
                    "rounds": count,
                    "release": release.name,
                    "noise": whole,
                    "share": whole / total,
                    "relative_error": whole / (cell * total),
                    "first_relative_error": first / (cell * total),
                    "last_relative_error": last / (cell * total),
                }


def _units_to_see_numbers(study: Study, stddev: float) -> int:
    """Units with which `_BINS` equal bins of every number carry a signal; 0 where no number is counted on one grid.

    The more cells are joined in a bin, the more of their noise is in it: with fewer units, give fewer cells.

    Args:
        study: with the numbers of cells.
        stddev: of the noise of one count of a class, summed over sites.
    """
    grids = (*make_grids(study.measured), *make_grids(study.channels))
    cells = [grid.n_values for grid in grids if grid.is_ordered and grid.name != STEPS and len(resolutions(grid)) == 1]
    joined = max(cells, default=0) / _BINS
    return math.ceil(_BINS * SIGNAL * stddev * math.sqrt(len(study.label_values) * joined))


def _shares(study: Study) -> tuple[float, ...]:
    """Share of the discriminators' budget of each measurement, as long as quality says nothing."""
    noise = study.noise
    return share_plan(noise.schedule, noise.rounds, noise.kappa, max_share=noise.max_share)
