"""Whether what a site sent can be what it says: sums over some number of units, with the noise that its event states.

Everything here reads noised releases and public facts, so it costs no privacy. It needs each site's own answers: sums
under masks, and releases that stay at their site, cannot be looked at.

What a site counts follows rules that every study fixes: no cell is below zero, every training unit adds exactly 1 to
each table of columns of the record and at most 1 to any other, a unit's vector has at most length 1. A release that
breaks one by more than its own noise explains is refused. A site that lies consistently, as rows that it does not have
would, passes: it has the influence of as many units as it states, and `rounds.site_units` bounds these.

False alarms: every comparison below is of a statistic whose deviation has, for an honest site, a chance of at most
2 exp(-`DEVIATIONS`² / 2) = 4e-22 to be larger than what is allowed; 10^12 comparisons in a run, which no run comes
near, stay below 1e-9 together. Why, with e = round(g) the noise of a cell in grid units and s the standard deviation of
the normal g:

- Linear statistics: by Poisson summation E exp(λe) <= exp((s² + 1/12) λ² / 2) (1 + 3 exp(-2π²s²)) for s >= 1, so that a
  weighted sum of cells has the tail of a normal one with the exact variance of rounded noise, up to 1e-8 a cell. Below
  s = 1 a draw is never larger than the same draw with s = 1, whose variance is taken.
- Norms: the norm of s times standard normal numbers is above its mean by more than ts with a chance of at most
  exp(-t²/2) (Gaussian concentration, Borell 1975, Tsirelson, Ibragimov and Sudakov 1976); rounding adds 1/2 a cell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from common.data.tables import TableLayout
from common.errors import ProtocolError
from common.privacy.events import GaussianEvent
from common.study import Study

DEVIATIONS = 10.0
"""How far anything may be from what a rule allows, in standard deviations of its noise."""
MOST_NOISE = 4.0
"""How many times the noise that the study asks for a site may add, because its policy demands more.

A site that could name any noise could have any deviation explained by it, and drown the sum."""


@dataclass(frozen=True)
class Form:
    """What is known of a release before it is made.

    cells: of the vector.
    squared_sensitivity: that every site's event has, in grid units squared.
    scale: grid units in one unit's count.
    sampling: chance of a unit to take part.
    layout: of tables of counts; None where the vector is a sum of vectors.
    emphasis: (tables,), what the counts of each table are multiplied by.
    whole: (tables,) bool, whether every training unit is in a table with all its weight, or with at most that.
    held_out: share of the units that it counts, which are held out; 0 where it counts the others.
    """

    cells: int
    squared_sensitivity: int
    scale: int
    sampling: float = 1.0
    layout: TableLayout | None = None
    emphasis: tuple[int, ...] = ()
    whole: tuple[bool, ...] = ()
    held_out: float = 0.0

    @classmethod
    def of_tables(
        cls,
        layout: TableLayout,
        *,
        scale: int,
        emphasis: Sequence[int] | None = None,
        whole: Sequence[bool] = (),
        held_out: float = 0.0,
    ) -> Self:
        """Of tables of counts, all of emphasis 1 where it is not given."""
        emphases = (1,) * layout.n_tables if emphasis is None else tuple(emphasis)
        sensitivity = sum(one**2 for one in emphases) * scale**2
        return cls(layout.n_cells, sensitivity, scale, 1.0, layout, emphases, tuple(whole), held_out)

    @classmethod
    def of_vectors(cls, cells: int, *, scale: int, sampling: float = 1.0) -> Self:
        """Of a sum of vectors, each of length 1 at most."""
        return cls(cells, scale**2, scale, sampling)


@dataclass(frozen=True)
class Units:
    """How many units a site states, by its noised one-way tables.

    counts: of each label class. stddev: of the noise in each, the same; rounded up.
    """

    counts: tuple[float, ...]
    stddev: float

    @property
    def total(self) -> float:
        """All of them, at least one."""
        return max(1.0, sum(self.counts))

    @property
    def room(self) -> float:
        """How far all of them together may be from what the noise lets one see."""
        return DEVIATIONS * self.stddev * math.sqrt(len(self.counts))


def check_event(site: str, event: GaussianEvent, form: Form, *, bought: float) -> None:
    """Refuse an event that is not of the release that was asked for.

    Args:
        site: its name.
        event: that it says.
        form: of the release.
        bought: the noise of a cell that the request buys with the study's whole budget, in grid units.

    Raises:
        ProtocolError: another sensitivity, unit or sampling than the study fixes, or far more noise than it asks for.
    """
    said = (event.cells, event.squared_sensitivity, event.scale, event.sampling)
    if said != (form.cells, form.squared_sensitivity, form.scale, form.sampling):
        raise ProtocolError(f"site {site}: event: its sensitivity, scale or sampling is not what the study fixes")
    if event.noise_stddev > MOST_NOISE * bought:
        raise ProtocolError(
            f"site {site}: event.noise_stddev: more than {MOST_NOISE:g} times the noise that the study asks for; lower "
            "least_noise or raise max_epsilon in the site's policy, or lower the study's epsilon"
        )


def state_units(counts: np.ndarray, event: GaussianEvent, form: Form) -> Units:
    """The best estimate of a site's units by class, from the totals of its one-way tables of columns."""
    totals, sizes = _totals(counts / event.scale, form)
    weights = np.where(form.whole, 1 / sizes, 0.0)  # (tables,)
    found = weights @ totals / weights.sum()
    return Units(tuple(map(float, found)), _stddev(event) / math.sqrt(weights.sum()))


def check_counts(site: str, counts: np.ndarray, event: GaussianEvent, form: Form, units: Units) -> None:
    """Refuse what cannot come of so many units and the noise of the event.

    Args:
        site: its name.
        counts: (cells,) int64, in grid units, as the site sent them.
        event: of the release, checked.
        form: of the release.
        units: that the site states; for the one-way tables those in themselves.

    Raises:
        ProtocolError: names the site and the rule; no count.
    """
    values = counts / event.scale
    if form.layout is None:
        if np.linalg.norm(values) > max(0.0, sum(units.counts)) + units.room + _norm(event, form.cells, share=1.0):
            raise ProtocolError(f"site {site}: a sum longer than its units can make it")
        return
    values = values / np.repeat(form.emphasis, np.diff(form.layout.offsets))
    for table, emphasis in zip(form.layout.split(values), form.emphasis, strict=True):
        below, noise = np.minimum(table, 0.0), _stddev(event) / emphasis
        if below.min() < -DEVIATIONS * noise or np.linalg.norm(below) > _norm(event, below.size, share=0.5) / emphasis:
            raise ProtocolError(f"site {site}: counts below zero, by more than its noise explains")
    if form.held_out:
        _check_held_out(site, values, event, form, units)
    elif form.whole:
        _check_totals(site, values, event, form, units)


def units_allowed(study: Study) -> str:
    """How many units a site may state, in words for those who agree on a study; no rows say what nobody may exceed."""
    if study.privacy.noise_trust != "local":
        return "any number, since masks hide it: one site can make of every sum what it likes"
    if study.rounds.site_units is None:
        return "any number, so one can outweigh all others: agree on rounds.site_units"
    return f"at most {study.rounds.site_units}"


def check_units(site: str, units: Units, *, most: int | None) -> None:
    """Refuse a site that states more units than any has.

    Raises:
        ProtocolError: by more than the noise explains.
    """
    if most is not None and sum(units.counts) - units.room > most:
        raise ProtocolError(f"site {site}: states more units than rounds.site_units={most}")


def _check_totals(site: str, values: np.ndarray, event: GaussianEvent, form: Form, units: Units) -> None:
    """Totals by class that agree with the stated units, and no cell above them."""
    known = np.array(units.counts)
    totals, sizes = _totals(values, form)
    noise = _stddev(event) / np.array(form.emphasis)  # (tables,)
    # The two are independent, or, in the one-way tables themselves, nearer to each other than if they were.
    room = DEVIATIONS * np.sqrt(noise**2 * sizes + units.stddev**2)[:, None]
    above, whole = totals - known, np.array(form.whole)
    if (above > room).any() or (above < -room)[whole].any():
        raise ProtocolError(f"site {site}: totals of tables that do not agree with the units of its one-way tables")
    room_of_cell = DEVIATIONS * np.hypot(noise, units.stddev)
    if any(
        (table > (known + own).reshape(-1, *[1] * (table.ndim - 1))).any()
        for table, own in zip(_split(values, form), room_of_cell, strict=True)
    ):
        raise ProtocolError(f"site {site}: a count above the units of its one-way tables")


def _check_held_out(site: str, values: np.ndarray, event: GaussianEvent, form: Form, units: Units) -> None:
    """As many held-out units as the training units let expect.

    Each unit is held out by a keyed hash of its own, so (1 - q) held out - q training is a sum of independent terms of
    mean 0 in an interval of length 1 (Hoeffding 1963).
    """
    q = form.held_out
    trained, deviation = sum(units.counts), units.stddev * math.sqrt(len(units.counts))
    for table in _split(values, form):
        held, noise = float(table.sum()), _stddev(event) * math.sqrt(table.size)
        most = max(0.0, held + trained) + DEVIATIONS * (noise + deviation)
        room = DEVIATIONS * (math.sqrt(most) / 2 + math.hypot((1 - q) * noise, q * deviation))
        if abs((1 - q) * held - q * trained) > room:
            raise ProtocolError(f"site {site}: held-out units that are not the study's share of its units")


def _split(values: np.ndarray, form: Form) -> list[np.ndarray]:
    assert form.layout is not None
    return list(form.layout.split(values))


def _totals(values: np.ndarray, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Totals of each table by class, (tables, classes), and the cells in each of them, (tables,)."""
    tables = _split(values, form)
    totals = [table.reshape(len(table), -1).sum(axis=1) for table in tables]
    return np.array(totals), np.array([table[0].size for table in tables])


def _stddev(event: GaussianEvent) -> float:
    """Of the noise in one cell, in units, rounding included; rounded up where the noise is less than a grid unit."""
    return math.sqrt(max(event.noise_stddev, 1.0) ** 2 + 1 / 12) / event.scale


def _norm(event: GaussianEvent, cells: int, *, share: float) -> float:
    """What the norm of the noise in some cells, of which a share counts on average, stays below; in units."""
    return (event.noise_stddev * (math.sqrt(share * cells) + DEVIATIONS) + math.sqrt(cells) / 2) / event.scale
