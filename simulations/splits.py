"""Who holds what in a simulation: a table divided over sites by unit, and units set aside for evaluation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.errors import ExitCode, SchemaError, StudyError
from common.study import Study

_DIRICHLET = re.compile(r"dirichlet:([0-9.eE+-]+)")


@dataclass(frozen=True)
class Units:
    """The units of a table: `number` (records,) int64 from 0, `count` of them."""

    number: np.ndarray
    count: int


def units_of(text: pd.DataFrame, study: Study) -> Units:
    """Number the units of a table of text."""
    if study.unit.key is None:
        return Units(np.arange(len(text), dtype=np.int64), len(text))
    # As the parsed table has it: a space at its end does not make another unit.
    codes, names = pd.factorize(text[study.unit.key].str.strip())
    return Units(codes.astype(np.int64), len(names))


def set_aside(units: Units, *, shares: Sequence[float], seed: int) -> np.ndarray:
    """Which records no site gets, (records,) int64: 1 for the first share of all units, 2 for the next; 0 for the rest.

    A uniform draw of units. How many are set aside in all does not depend on how they are shared out.
    """
    ends = np.rint(np.cumsum(shares) * units.count).astype(np.int64)
    part_of = np.zeros(units.count, dtype=np.int64)
    order = np.random.default_rng([seed, 1]).permutation(units.count)
    part_of[order[: ends[-1]]] = np.searchsorted(ends, np.arange(ends[-1]), side="right") + 1
    return np.asarray(part_of[units.number])


def split(text: pd.DataFrame, study: Study, *, sites: int, how: str, seed: int) -> list[np.ndarray]:
    """Records of each site, as positions; a unit is at one site.

    Args:
        text: table of text, the records that sites may hold.
        study: with unit key and label.
        sites: how many.
        how: "iid"; "dirichlet:A", label shares drawn from Dirichlet(A) a class (smaller A, more skew); or
            "column:NAME", units dealt by the value of a column, the largest values apart first.
        seed: of the draw.

    Raises:
        SchemaError: more sites than units, or the split column is not in the table.
        StudyError: `how` is none of the three.
    """
    units = units_of(text, study)
    if sites > units.count:
        raise SchemaError(f"sites={sites}: expected at most one site a unit", ExitCode.MORE_SITES_THAN_UNITS)
    random = np.random.default_rng([seed, 2])
    if how == "iid":
        site_of = np.empty(units.count, dtype=np.int64)
        site_of[random.permutation(units.count)] = np.arange(units.count) % sites
    elif match := _DIRICHLET.fullmatch(how):
        site_of = _by_label(text[study.label.column], units, sites, _concentration(match[1]), random)
    elif how.startswith("column:"):
        site_of = _by_column(text, how.removeprefix("column:"), units, sites)
    else:
        raise StudyError(f"split={how}: expected iid, dirichlet:A or column:NAME", ExitCode.USAGE)
    return [np.flatnonzero(site_of[units.number] == site) for site in range(sites)]


def resembling(
    text: pd.DataFrame, study: Study, *, own: np.ndarray, others: np.ndarray, how: str, seed: int
) -> np.ndarray:
    """Other records of units that the same rule could as well have given to a site, as positions.

    Who is to be told from a site's units must differ from them in nothing but that: not in the bank that they are at.

    Edge cases: "dirichlet:A" -> as many units of each label class as make the site's shares of them, drawn.

    Args:
        text: table of text, of all.
        study: with unit key and label.
        own: records of the site, as positions.
        others: records to choose from, as positions.
        how: see `split`.
        seed: of the draw.
    """
    if how.startswith("column:"):
        column = text[how.removeprefix("column:")].to_numpy()
        return np.asarray(others[np.isin(column[others], np.unique(column[own]))])
    if not _DIRICHLET.fullmatch(how):
        return others
    units = units_of(text, study)
    labels = text[study.label.column].to_numpy()[_first_of_unit(units)]
    mine, theirs = (np.unique(units.number[rows]) for rows in (own, others))
    shares = {label: float((labels[mine] == label).mean()) for label in np.unique(labels[mine])}
    most = min(int((labels[theirs] == label).sum()) / share for label, share in shares.items())
    random = np.random.default_rng([seed, 3])
    chosen = [
        random.permutation(theirs[labels[theirs] == label])[: round(most * share)] for label, share in shares.items()
    ]
    return np.asarray(others[np.isin(units.number[others], np.concatenate(chosen))])


def _concentration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise StudyError(f"split=dirichlet:{text}: expected a number above 0", ExitCode.USAGE)
    return value


def _first_of_unit(units: Units) -> np.ndarray:
    """The first record of each unit, (units,)."""
    first = np.empty(units.count, dtype=np.int64)
    first[units.number[::-1]] = np.arange(len(units.number))[::-1]
    return first


def _by_label(
    labels: pd.Series, units: Units, sites: int, concentration: float, random: np.random.Generator
) -> np.ndarray:
    own = labels.to_numpy()[_first_of_unit(units)]
    site_of = np.empty(units.count, dtype=np.int64)
    for label in sorted(set(own)):
        members = random.permutation(np.flatnonzero(own == label))
        shares = random.dirichlet(np.full(sites, concentration))
        site_of[members] = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(len(members)) + 0.5) / len(members))
    for site in np.setdiff1d(np.arange(sites), site_of):
        # Nobody joins a federation without a single unit: the fullest site gives one.
        site_of[np.flatnonzero(site_of == np.bincount(site_of).argmax())[0]] = site
    return site_of


def _by_column(text: pd.DataFrame, name: str, units: Units, sites: int) -> np.ndarray:
    if name not in text.columns:
        raise SchemaError(f"split=column:{name}: no such column in the table", ExitCode.SPLIT_COLUMN_UNKNOWN)
    own = text[name].to_numpy()[_first_of_unit(units)]
    values, counts = np.unique(own, return_counts=True)
    if len(values) < sites:
        raise SchemaError(
            f"split=column:{name}: the column has fewer values than there are sites", ExitCode.MORE_SITES_THAN_UNITS
        )
    held = np.zeros(sites, dtype=np.int64)
    owner: dict[str, int] = {}
    for position in np.argsort(-counts, kind="stable"):
        emptiest = int(held.argmin())
        owner[values[position]] = emptiest
        held[emptiest] += counts[position]
    return np.array([owner[value] for value in own], dtype=np.int64)
