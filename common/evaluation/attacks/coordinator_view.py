"""What the coordinator can tell of a person from the noised tables that the sites sent.

It sees more than whoever has only what is published: the releases, before a generator smoothed them. A release is a sum
over units and Gaussian noise, so the best test of whether one unit is in it is the ratio of two likelihoods: what the
release shows beyond what the others are expected to add, against what the unit itself would add.

Adversaries differ in what they know of the others. One who knows nobody takes the generator's word for what they add,
and allows for the chance of who they are; so a unit tells most in cells that few others hit. It reads the tables of the
catalogue alone: the bins, and with them the generator, were made from the one-way tables and repeat their noise. One
who knows everybody but those in question has the exact counts of all others, and reads all tables: it comes near to the
adversary for whom differential privacy is defined, who knows everybody but one.

Embeddings and gradients of a neural critic are not read. What is read are sums over sites: a coordinator that sees each
site's own release, and guesses the site, has less noise to look through, by up to the square root of the number of
sites.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from common.data.encoding import make_grids
from common.data.histograms import histogram_codes, histogram_layout, window_hits
from common.data.queries import GROUPED, Counter, Query, catalogue, layout_of
from common.data.tables import Hits, cell_indices, sizes_of
from common.data.units import WINDOW_WEIGHT, unit_weight
from common.evaluation.attacks.coded import encode, join
from common.evaluation.attacks.games import EVERYONE, MembershipAttack, assess, unmeasured
from common.evaluation.audit import canary_scores
from common.evaluation.figures import Population
from common.models.critics import Joins, expectations
from common.models.generator import Generator
from common.models.releases import Bins, Release, one_way_layout
from common.models.targets import TableIndex, Targets
from common.study import Study

KNOWS_NOBODY: Final = "coordinator"
KNOWS_OTHERS: Final = "coordinator that knows every unit but those in question"

_LATENTS: Final = 4096
"""From which the generator's tables are made, of each label class."""
_AT_ONCE: Final = 512
_MOST_RECORDS: Final = 16
"""No study uses more records of one unit."""
_IN_QUESTION: Final = 500
"""Members, and as many controls, that are unknown to who knows all others, at most."""
_NO_TABLES: Final = "no table of two columns or channels was released to the coordinator"


@dataclass(frozen=True)
class Releases:
    """What the coordinator has at the end of a run.

    one_way: the release of one-way tables.
    targets: the tables of the catalogue, each the mean of its releases by their precision.
    bins: of columns and channels.
    generator: that was made from them.
    """

    one_way: Release
    targets: Targets
    bins: Bins
    generator: Generator


def attack_releases(  # noqa: PLR0913 (who, what, how hard: all of them the caller's)
    releases: Releases,
    members: Population,
    controls: Population,
    study: Study,
    *,
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    epsilon: float | None,
    delta: float,
    seed: int,
    most: int,
    device: torch.device,
) -> dict[str, MembershipAttack]:
    """Try the likelihood ratio for both adversaries.

    noised_tables: releases hold counts y, with noise of variance s in each cell; a unit adds c to them. The generator
        expects m, of which the chance of who is there makes a variance of m again. The score of a unit is the sum over
        the cells of the catalogue's tables of (c (y - m) - c^2 / 2) / (s + m), as if they were independent.
    noised_tables_others_known: of up to 500 members and as many controls nothing is known; all other members are, as
        far as they trained, a share that the releases tell. See `canary_scores`.

    Who knows the others is not told, of each unit, whether all the others in question are there: whoever knows that
    knows the noise, by which units of one release could be compared better than privacy allows for any of them.

    Guarantees: members and controls are scored by one rule, and it is not known to which side a unit belongs.
    Edge cases: members who were held out of training count as members, and nothing of them is found; a unit with more
        records than the study uses is taken to have used all of them by equal shares; discriminators that stay at the
        sites -> None and the reason, for who knows nobody.

    Args:
        releases: of the run.
        members: all units that were trained on, or might have been.
        controls: units of the same population that no site had.
        study: of the run.
        groups: by name, which members and which controls, both bool; populations beside everyone.
        epsilon: the claim, per unit; None where there is none.
        delta: likewise.
        seed: of who plays, and of latents.
        most: members, and controls, that play.
        device: of the generator.

    Sources: Neyman and Pearson 1933; Homer et al. 2008, Sankararaman et al. 2009 (membership from published sums).
    """
    random = np.random.default_rng([seed, 0])
    playing = [np.sort(random.permutation(side.count)[:most]) for side in (members, controls)]
    fewest = min(_IN_QUESTION, *map(len, playing))
    sought = [np.sort(random.permutation(side)[:fewest]) for side in playing]

    def game(adversary: str, players: list[np.ndarray], scores: list[np.ndarray]) -> MembershipAttack:
        chosen = {name: (masks[0][players[0]], masks[1][players[1]]) for name, masks in groups.items()}
        return assess(*scores, adversary=adversary, groups=chosen, epsilon=epsilon, delta=delta, seed=seed)

    expected = _generated(releases, study, seed, device)
    surprising = [
        _surprises(side.take(chosen), expected, releases, study)
        for side, chosen in zip((members, controls), playing, strict=True)
    ]
    attacks = {"noised_tables": game(KNOWS_NOBODY, playing, surprising)}
    if not expected:
        attacks["noised_tables"] = unmeasured(KNOWS_NOBODY, (EVERYONE, *groups), _NO_TABLES)
    solved = _solve(members, controls.take(sought[1]), sought[0], releases, study)
    return attacks | {"noised_tables_others_known": game(KNOWS_OTHERS, sought, solved)}


@dataclass(frozen=True)
class _Table:
    """Released cells, flat: counts in units, and the variance of the noise in each."""

    counts: np.ndarray
    variance: np.ndarray


@torch.no_grad()
def _generated(releases: Releases, study: Study, seed: int, device: torch.device) -> list[np.ndarray]:
    """What the generator says of the tables of the catalogue that were measured, in units."""
    generator, targets = releases.generator, releases.targets
    classes, random = generator.shape.classes, torch.Generator(device=device).manual_seed(seed)
    labels = torch.arange(classes, device=device).repeat_interleave(_AT_ONCE)
    joins, parts = Joins(targets.groups, device), _LATENTS // _AT_ONCE
    means: dict[str, np.ndarray] = {}
    for _ in range(parts):
        noise = torch.randn(len(labels), generator.shape.noise, generator=random, device=device)
        for name, expected in expectations(generator(noise, labels), classes, joins).items():
            means[name] = means.get(name, 0.0) + expected.cpu().double().numpy() / parts
    found = []
    for query, cells in _measured(releases, study):
        table = means[query.family][:, *cells]
        found.append((table * targets.label_counts.reshape(-1, *[1] * (table.ndim - 1))).reshape(-1))
    return found


def _scale(tables: list[_Table], sums: list[np.ndarray]) -> float:
    """What brings sums nearest to the releases, by least squares; 0 for nobody's."""
    along = sum(float((table.counts * own / table.variance).sum()) for table, own in zip(tables, sums, strict=True))
    square = sum(float((own**2 / table.variance).sum()) for table, own in zip(tables, sums, strict=True))
    return max(0.0, along / square) if square > 0 else 0.0


def _surprises(people: Population, expected: list[np.ndarray], releases: Releases, study: Study) -> np.ndarray:
    """Likelihood ratios for who knows nobody, (units,), from the last tables, of which so much is expected."""
    scores = np.zeros(people.count)
    tables = list(_tables(releases, study))
    first = len(tables) - len(expected)
    contributions = itertools.islice(_contributions(people, releases, study), first, None)
    for table, mean, own in zip(tables[first:], expected, contributions, strict=True):
        variance = table.variance + mean
        scores += own @ ((table.counts - mean) / variance) - own.power(2) @ (1 / variance) / 2
    return scores


def _solve(
    members: Population, controls: Population, sought: np.ndarray, releases: Releases, study: Study
) -> list[np.ndarray]:
    """Scores for who knows all members but those that are sought; of these, and of the controls."""
    inside, tables = members.take(sought), list(_tables(releases, study))
    everybody = _sums(members, releases, study)
    trained = min(1.0, _scale(tables, everybody))
    units = len(sought) + controls.count
    products, along = np.zeros((units, units)), np.zeros(units)
    sides = (_contributions(side, releases, study) for side in (inside, controls))
    for table, together, *own in zip(tables, everybody, *sides, strict=True):
        known = together - own[0].sum(axis=0)
        # Who of the known ones did not train is left open.
        variance = table.variance + trained * (1 - trained) * np.maximum(known, 0.0)
        candidates = vstack(own, format="csr")
        weighted = candidates * (1 / variance)
        products += (weighted @ candidates.T).toarray()
        along += weighted @ (table.counts - trained * known)
    scores = canary_scores(products, along)
    return [scores[: len(sought)], scores[len(sought) :]]


def _contributions(people: Population, releases: Releases, study: Study) -> Iterator[csr_array]:
    """What each unit adds to each table, (units, cells) in units."""
    for hit in _hits(people, releases, study):
        yield csr_array((hit.shares, (hit.units, hit.cells)), shape=(people.count, hit.size))


def _sums(people: Population, releases: Releases, study: Study) -> list[np.ndarray]:
    """What all of them together add to each table, (cells,) each."""
    return [np.bincount(hit.cells, weights=hit.shares, minlength=hit.size) for hit in _hits(people, releases, study)]


def _tables(releases: Releases, study: Study) -> Iterator[_Table]:
    """One-way tables, then those of the catalogue that were measured."""
    for table in one_way_layout(study).split(releases.one_way.counts):
        yield _Table(table.reshape(-1), np.full(table.size, releases.one_way.variance))
    for query, cells in _measured(releases, study):
        target = releases.targets.tables[query.family]
        counts = target.values[:, *cells]
        yield _Table(counts.reshape(-1), np.broadcast_to(1 / target.precision[cells], counts.shape).reshape(-1))


def _measured(releases: Releases, study: Study) -> Iterator[tuple[Query, tuple[np.ndarray | int, ...]]]:
    """The tables of the catalogue that were measured, and where they lie in the arrays of their families."""
    index = TableIndex(releases.generator.shape, _groups_of(releases))
    for query in catalogue(releases.bins.columns, study.windows):
        cells = index.table(query)
        if bool((releases.targets.tables[query.family].precision[cells] > 0).all()):
            yield query, cells


def _groups_of(releases: Releases) -> list[np.ndarray]:
    """From the bins of each column and channel to its groups, numbered from 0."""
    groups, bins = releases.targets.groups, releases.bins
    sizes = (bins.sizes[: bins.columns], bins.sizes[bins.columns :])
    maps = []
    for joined, own in zip((groups.records, groups.channels), sizes, strict=True):
        maps += [part - part[0] for part in np.split(joined, np.cumsum(own)[:-1])] if own else []
    return maps


@dataclass(frozen=True)
class _Hit:
    """Which units hit which cells of a table of `size`, numbered from 0, and with what share of a unit."""

    units: np.ndarray
    cells: np.ndarray
    shares: np.ndarray
    size: int


def _hits(people: Population, releases: Releases, study: Study) -> Iterator[_Hit]:
    """Table by table, in the order of `_tables`; a site counts its own units by the same functions."""
    grids, channels = make_grids(study.measured), make_grids(study.channels)
    classes, bins = len(study.label_values), releases.bins
    cells = encode(people.table, study)
    records = np.bincount(people.units, minlength=people.count)
    most = min(max(int(records.max(initial=1)), 1), _MOST_RECORDS)
    whole = unit_weight(most) * (1 if study.windows is None else WINDOW_WEIGHT)
    weights = whole // records[people.units]

    def placed(hits: Hits, begin: int, end: int) -> _Hit:
        return _Hit(people.units[hits.rows], hits.cells - begin, hits.weights / whole, end - begin)

    layout, own = one_way_layout(study), histogram_layout(grids, classes)
    indices = cell_indices(histogram_codes(cells.records, grids), cells.labels, own)
    rows = np.arange(len(cells.labels))
    one_way: Iterator[Hits] = (Hits(rows, indices[:, number], weights) for number in range(own.n_tables))
    if cells.windows is not None:
        moving = study.counts_moves
        windows = window_hits(cells.windows, cells.labels, channels, layout, whole=whole, moving=moving)
        one_way = itertools.chain(one_way, windows)
    for hits, (begin, end) in zip(one_way, itertools.pairwise(layout.offsets.tolist()), strict=True):
        yield placed(hits, begin, end)
    groups = _groups_of(releases)
    binned = join(cells, bins.maps)
    grouped = join(cells, [group[bin_of] for group, bin_of in zip(groups, bins.maps, strict=True)])
    for query, _ in _measured(releases, study):
        coded, sizes = (grouped, sizes_of(groups)) if query.family in GROUPED else (binned, bins.sizes)
        layout = layout_of([query], sizes, classes)
        yield placed(Counter(coded, study.windows, weights).hits(query, layout, 0), 0, layout.n_cells)
