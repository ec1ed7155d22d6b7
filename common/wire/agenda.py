"""What a run asks of each site, in order: which kinds, how often, for which share of the budget, and how many numbers.

It follows from the study alone. The coordinator takes the shares from here, and a site shows them before it consents.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

import numpy as np

from common.data.encoding import Grid, make_grids
from common.data.queries import Family, catalogue, layout_of
from common.models.embedding import FEATURES
from common.models.generator import initialise
from common.models.monitor import score_layout
from common.models.neural import critic_parameters, initialise_critic
from common.models.releases import one_way_layout
from common.models.training import parameters_of
from common.models.verdicts import heads_of
from common.privacy.accountants import Accountant
from common.study import STEPS, Study
from common.wire.messages import KEPT
from common.wire.packing import critic_shape_of, shape_of

WHOLE: Final = 1 - 1e-9
"""The largest share that the requests of one account may ask for together, with room for rounding."""

PARTS: Final[Mapping[str, tuple[str, tuple[Family, ...]]]] = {
    "pairs": ("statistical", (Family.PAIR,)),
    "couplings": ("temporal", (Family.COURSE, Family.TOGETHER)),
    "dynamics": (
        "temporal",
        (Family.LEVEL, Family.TRANSITION, Family.ENDS, Family.HIGHEST, Family.LOWEST, Family.OBSERVED),
    ),
}
"""Each part is one release: whose budget it has, and its families. The parts of one discriminator share equally."""

EMPHASIS: Final[Mapping[Family, int]] = {Family.TOGETHER: 2}
"""What a site multiplies the counts of a table by before it adds noise, 1 where nothing is said.

Tables of two channels are few beside those of a column and a channel: half the noise in them costs these a sixth more
where there are seven times as many, and half more where there are no more than they.
"""


@dataclass(frozen=True)
class Item:
    """Messages of one kind that a site sends in a run.

    kind: of the request.
    part: of `tables`, which of `PARTS`; else empty.
    times: at most, where nothing is asked again.
    account: that pays; None where nothing is released.
    share: of the account's budget, all of them together, at most. What a neural critic leaves that is asked no more,
        since its gate stayed shut, goes to tables and embeddings beyond that; the sum over all kinds stays.
    tables: that a unit adds at most 1 to, where it is about counts.
    cells: numbers in one message.
    is_exact: whether the number is certain; bins depend on the noised one-way tables, so else it is about so many.
    is_kept: whether the numbers stay at the site, and only that they were paid for is told.
    """

    kind: str
    times: int
    part: str = ""
    account: Literal["train", "holdout"] | None = None
    share: float = 0.0
    tables: int = 0
    cells: int = 0
    is_exact: bool = True
    is_kept: bool = False


@dataclass(frozen=True)
class PlannedTables:
    """The tables of a part.

    numbers: (tables,) int64, in the study's catalogue, in rising order. emphasis: (tables,) int64, of each, as in
    `EMPHASIS`. share: of the discriminators' budget.
    """

    numbers: np.ndarray
    emphasis: np.ndarray
    share: float

    @classmethod
    def of(cls, numbers: np.ndarray, families: Iterable[Family], share: float) -> Self:
        """With the emphasis of each table's family."""
        return cls(numbers, np.array([EMPHASIS.get(family, 1) for family in families], dtype=np.int64), share)

    def noise_stddev(self, accountant: Accountant, *, spend: float) -> float:
        """Standard deviation of the noise of one count, in units, of the tables that are emphasised least."""
        sensitivity = int((self.emphasis**2).sum())
        noise = accountant.noise_stddev(squared_sensitivity=sensitivity, spend=spend, sampling=1.0)
        return noise / int(self.emphasis.min())


def planned_tables(study: Study) -> dict[str, PlannedTables]:
    """The tables of each part that is on.

    Of what the discriminators with tables have together each gets its weight times the root of the number of its
    tables. With equal weights that makes the sum of the variances of one count of each the least that it can be; equal
    shares would give the few tables of a narrow record far less noise than the many of its windows.
    """
    shares = study.discriminators.shares(windows=study.windows is not None)
    known = catalogue(len(study.measured), study.windows)
    numbers = {}
    for name, (discriminator, families) in PARTS.items():
        some = np.array([at for at, query in enumerate(known) if query.family in families], dtype=np.int64)
        if discriminator in shares and len(some):
            numbers[name] = some
    parts = {owner: [name for name in numbers if PARTS[name][0] == owner] for owner, _ in PARTS.values()}
    roots = {owner: math.sqrt(sum(len(numbers[name]) for name in names)) for owner, names in parts.items() if names}
    weights = {owner: shares[owner] * root for owner, root in roots.items()}
    whole, weight = sum(shares[owner] for owner in roots), sum(weights.values())
    planned = {}
    for name, some in numbers.items():
        owner = PARTS[name][0]
        share = whole * weights[owner] / weight / len(parts[owner])
        planned[name] = PlannedTables.of(some, (known[at].family for at in some), share)
    return planned


def discriminators_share(study: Study) -> float:
    """What one-way tables leave of a site's budget."""
    return (1 - study.privacy.one_way_share) * WHOLE


def held_out_share(study: Study) -> float:
    """Part of the held-out units' budget for the verdicts on the critic, or for the validations, if both are on."""
    return 0.5 * WHOLE if _is_neural(study) else WHOLE


def validation_share(study: Study, stage: int) -> float:
    """Of the held-out units' budget, for the validation after a stage, from 1 on.

    The last one says how good the outcome is, and gets half of what there is.
    """
    whole, stages = held_out_share(study), study.noise.rounds
    return whole if stages == 1 else 0.5 * whole / (1 if stage == stages else stages - 1)


def agenda(study: Study, *, sites: int) -> list[Item]:
    """Every kind of message that a site sends in one run, in the order of its first.

    Args:
        study: as all approved it.
        sites: of the federation.
    """
    releases = _releases(study)
    measured = sum(item.times for item in releases)
    masks = [Item("masks", 2)] if study.privacy.noise_trust != "local" else []
    return [
        Item("describe", 2),
        Item("witness", measured + 2),
        Item("confirm", measured + 1),
        *masks,
        *releases,
        *_training(study, sites=sites),
    ]


def _releases(study: Study) -> list[Item]:
    stages, rest = study.noise.rounds, discriminators_share(study)
    # What the floor of the noise leaves unspent.
    reached = min(1.0, stages * study.noise.max_share)
    shares = study.discriminators.shares(windows=study.windows is not None)
    classes, sizes = len(study.label_values), _bins(study)
    known = catalogue(len(study.measured), study.windows)
    one_way = one_way_layout(study)
    found = [
        Item(
            "one_way", 1, account="train", share=study.privacy.one_way_share, tables=one_way.n_tables,
            cells=one_way.n_cells,
        )
    ]  # fmt: skip
    for part, planned in planned_tables(study).items():
        cells = layout_of([known[at] for at in planned.numbers], sizes, classes).n_cells
        found.append(
            Item(
                "tables", stages, part, "train", rest * planned.share * reached, len(planned.numbers), cells,
                is_exact=False,
            )
        )  # fmt: skip
    if semantic := shares.get("semantic"):
        cells = 2 * FEATURES * classes
        found.append(Item("embedding", stages, "", "train", rest * semantic * reached, cells=cells))
    if (neural := shares.get("neural")) and stages > 1:
        critic = initialise_critic(critic_shape_of(study, shape_of(study, sizes)), seed=0)
        steps = (stages - 1) * study.critic.steps
        cells = sum(values.size for values in critic_parameters(critic).values())
        share = rest * neural * min(1.0, (stages - 1) * study.noise.max_share)
        found.append(Item("critic", steps, "", "train", share, cells=cells, is_exact=False))
        if study.privacy.holdout > 0:
            heads = len(heads_of(critic))
            share = held_out_share(study)
            found.append(Item("verdict", stages - 1, "", "holdout", share, tables=heads, cells=2 * heads))
    if study.privacy.holdout > 0:
        share = sum(validation_share(study, stage) for stage in range(1, stages + 1))
        found.append(Item("monitor", stages, "", "holdout", share, tables=1, cells=score_layout().n_cells))
    is_local = study.discriminators.scope == "local"
    return [replace(item, is_kept=is_local and item.kind in KEPT) for item in found]


def _training(study: Study, *, sites: int) -> list[Item]:
    rounds = study.rounds
    if not study.site_steps:
        return []
    times = math.ceil(rounds.count * min(rounds.trainers, sites) / sites)
    cells = sum(values.size for values in parameters_of(initialise(shape_of(study, _bins(study)), seed=0)).values())
    return [Item("train", times, cells=cells, is_exact=False)]


def _bins(study: Study) -> tuple[int, ...]:
    """About how many bins each column has, then each channel."""
    model = study.model
    columns = [_bins_of(grid, model.max_bins) for grid in make_grids(study.measured)]
    return (*columns, *(_bins_of(grid, model.channel_bins) for grid in make_grids(study.channels)))


def _bins_of(grid: Grid, most: int) -> int:
    if not grid.is_ordered or grid.name == STEPS:
        return grid.n_cells
    return min(grid.n_values, most) + grid.column.missing


def _is_neural(study: Study) -> bool:
    return "neural" in study.discriminators.shares(windows=study.windows is not None)
