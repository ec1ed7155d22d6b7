"""Attacks on noised tables: as strong as theory says they are, and no stronger than their noise allows."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr

from client.vault import Vault
from common.data.queries import GROUPED, Query, catalogue, layout_of
from common.data.tables import sizes_of
from common.data.windows import long_table
from common.evaluation.attacks.coordinator_view import (
    KNOWS_NOBODY,
    KNOWS_OTHERS,
    Releases,
    _contributions,
    _generated,
    _hits,
    _measured,
    _sums,
    _tables,
    attack_releases,
)
from common.evaluation.attacks.games import MembershipAttack
from common.evaluation.figures import Figure, Population
from common.models.releases import Release
from common.models.targets import TargetBuilder
from common.privacy.accountants import GdpAccountant
from common.privacy.budget import mu_of
from common.privacy.ledger import Asset, Ledger
from common.privacy.signatures import SigningKey
from common.study import Study
from tests.common.evaluation.attacks.memories import CPU, draw, make_bins, make_study, remember

LAYOUTS = (None, "grid", "events")
PLAIN = make_study()


def groups_of(study: Study) -> list[np.ndarray]:
    """Two bins to a group."""
    return [np.arange(size) // 2 for size in make_bins(study).sizes]


def observe(study: Study, people: Population, strangers: Population, *, stddev: float, seed: int = 0) -> Releases:
    """All tables of some people with noise, and a generator that remembers others."""
    published = remember(study, strangers, certain=0.95)
    known = catalogue(published.bins.columns, study.windows)
    random = np.random.default_rng(seed)

    def releases(one_way: np.ndarray, counts: Sequence[np.ndarray]) -> Releases:
        builder = TargetBuilder(published.generator.shape, groups_of(study))
        for query, own in zip(known, counts, strict=True):
            builder.add_table(query, own, stddev**2)
        return Releases(
            Release(one_way, stddev**2, {}),
            builder.build(np.bincount(labels, minlength=2).astype(np.float64)),
            published.bins,
            published.generator,
        )

    labels = people.table.records["risk"].cat.codes.to_numpy()
    shapes = [layout_of([query], sizes_for(study, query), 2).shapes[0] for query in known]
    blank = releases(np.zeros(0), [np.zeros(shape) for shape in shapes])
    sums = [own + random.normal(0, stddev, len(own)) for own in _sums(people, blank, study)]
    first = len(sums) - len(known)
    tables = [own.reshape(shape) for own, shape in zip(sums[first:], shapes, strict=True)]
    return releases(np.concatenate(sums[:first]), tables)


def sizes_for(study: Study, query: Query) -> tuple[int, ...]:
    return sizes_of(groups_of(study)) if query.family in GROUPED else make_bins(study).sizes


def attack(
    releases: Releases, members: Population, controls: Population, study: Study = PLAIN, **more: object
) -> dict[str, MembershipAttack]:
    given = {"groups": {}, "epsilon": 1.0, "delta": 1e-6, "seed": 0, "most": 10_000, "device": CPU}
    return attack_releases(releases, members, controls, study, **(given | more))  # type: ignore[arg-type]


def area(attacks: dict[str, MembershipAttack], name: str, population: str = "everyone") -> Figure:
    return attacks[name].populations[population]["auc"]


class NoNoise:
    kind = "csprng"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_units_hit_the_cells_that_a_site_counts(layout: str | None, tmp_path: Path) -> None:
    study = make_study(layout, privacy={"epsilon": 1, "delta": 1e-6, "holdout": 0})
    people = draw(study, 40, 0, records=3 if layout is None else 1)
    vault = open_vault(study, people, tmp_path)
    releases = observe(study, people, people, stddev=1.0)
    sums = _sums(people, releases, study)
    asked = {"spend": 1e3, "request": "one", "digest": "x"}
    counts, event = vault.one_way(**asked)
    known = catalogue(releases.bins.columns, study.windows)
    assert np.concatenate(sums[: len(sums) - len(known)]) == pytest.approx(counts / event.scale)
    for number, query in enumerate(known):
        maps = groups_of(study) if query.family in GROUPED else [np.arange(size) for size in make_bins(study).sizes]
        asked = {"spend": 1e3, "request": f"table-{number}", "digest": "x"}
        counts, event = vault.tables([query], np.ones(1, np.int64), maps, **asked)
        assert sums[len(sums) - len(known) + number] == pytest.approx(counts / event.scale), query


def open_vault(study: Study, people: Population, folder: Path) -> Vault:
    """A site of these people, without noise."""
    asset, key = Asset("north", "rows", "", GdpAccountant(), 1e9), SigningKey.from_seed(bytes(32))
    ledger = Ledger(folder / "ledger.jsonl", asset=asset, study=study.digest(), bound=1e9, key=key)
    names = np.array([f"unit-{number}" for number in range(people.count)])
    records = people.table.records.copy()
    records.insert(0, "who", names[people.units])
    series = None
    if study.windows is not None:
        table = people.table
        series = long_table(table.values, table.lengths, study.windows, unit_key="who", units=list(names))
        series = series.astype(object).where(series.notna(), "").map(str)
    return Vault(records, series, study, secret=bytes(32), ledger=ledger, noise=NoNoise())  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_unit_adds_at_most_one_to_a_table(layout: str | None) -> None:
    study = make_study(layout)
    people = draw(study, 30, 0, records=3 if layout is None else 1)
    releases = observe(study, people, people, stddev=1.0)
    tables = list(_tables(releases, study))
    for table, hit in zip(tables, _hits(people, releases, study), strict=True):
        assert hit.size == len(table.counts) == len(table.variance)
        added = np.bincount(hit.units, weights=hit.shares, minlength=30)
        assert added.max() <= 1 + 1e-9
        if layout is None:
            assert added == pytest.approx(1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_hardly_any_noise_everybody_is_found(layout: str | None) -> None:
    study = make_study(layout)
    members, controls, strangers = (draw(study, units, seed) for seed, units in enumerate((100, 100, 2000)))
    attacks = attack(observe(study, members, strangers, stddev=0.05), members, controls, study)
    assert attacks["noised_tables"].adversary == KNOWS_NOBODY
    assert attacks["noised_tables_others_known"].adversary == KNOWS_OTHERS
    assert area(attacks, "noised_tables").value > 0.8
    assert area(attacks, "noised_tables_others_known").value > 0.99


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nobody_is_found_in_the_tables_of_others(layout: str | None) -> None:
    study = make_study(layout)
    members, controls, strangers, others = (draw(study, 100, seed) for seed in range(20, 24))
    attacks = attack(observe(study, others, strangers, stddev=0.5), members, controls, study)
    figure = area(attacks, "noised_tables")
    assert figure.low <= 0.5 <= figure.high


@pytest.mark.statistical
def test_who_knows_the_others_finds_nearly_all_that_gaussian_noise_lets_through() -> None:
    """Two units whose contributions are d standard deviations apart are ranked rightly with a chance of Phi(d / 2)."""
    mu, found, best = 1.5, [], []
    for seed in range(10):
        members, controls, strangers = (draw(PLAIN, 60, 100 + 3 * seed + part) for part in range(3))
        skeleton = observe(PLAIN, members, strangers, stddev=1.0)
        stddev = len(list(_tables(skeleton, PLAIN))) ** 0.5 / mu
        sides = zip(*(_contributions(side, skeleton, PLAIN) for side in (members, controls)), strict=True)
        together = sum(((one @ other.T).toarray() for one, other in sides), np.zeros((60, 60)))
        best.append(ndtr(np.sqrt(2 * mu**2 - 2 * together / stddev**2) / 2).mean())
        releases = observe(PLAIN, members, strangers, stddev=stddev, seed=seed)
        attacks = attack(releases, members, controls, most=30, seed=seed)
        found.append(area(attacks, "noised_tables_others_known").value)
    # Ten areas of 30 and 30 units have a standard error of 0.02.
    assert np.mean(best) - 0.09 < np.mean(found) < np.mean(best) + 0.06


def test_the_noise_of_the_claim_keeps_both_below_their_ceilings() -> None:
    members, controls, strangers = (draw(PLAIN, 400, seed) for seed in range(3))
    tables = len(list(_tables(observe(PLAIN, members.take(np.arange(2)), strangers, stddev=1.0), PLAIN)))
    stddev = tables**0.5 / mu_of(epsilon=1.0, delta=1e-6)
    attacks = attack(observe(PLAIN, members, strangers, stddev=stddev), members, controls)
    for name in attacks:
        figure = area(attacks, name)
        assert figure.high < figure.ceiling
        assert figure.ceiling == pytest.approx(0.731, abs=1e-3)


def test_a_unit_with_rare_values_is_found_first() -> None:
    """Beside many others a unit is seen in cells that few of them hit."""
    members, controls, strangers = (draw(PLAIN, 400, seed) for seed in range(3))
    rare = np.arange(400) < 100

    def lonely(people: Population) -> Population:
        """A quarter of them of an age that nobody else has."""
        table = dataclasses.replace(people.table, records=people.table.records.copy())
        table.records.loc[~rare, "age"] = 4
        return Population(table, people.units)

    inside, outside, others = (lonely(people) for people in (members, controls, strangers))
    attacks = attack(
        observe(PLAIN, inside, others, stddev=1.5),
        inside,
        outside,
        groups={"rare": (rare, rare), "common": (~rare, ~rare)},
    )
    assert area(attacks, "noised_tables", "rare").value > area(attacks, "noised_tables", "common").value + 0.05


def test_those_who_did_not_train_are_allowed_for() -> None:
    """Members of whom a tenth are not in the releases, as if a site had held them out."""
    members, controls, strangers = (draw(PLAIN, 300, seed) for seed in range(3))
    trained = np.arange(300) >= 30
    releases = observe(PLAIN, members.take(trained), strangers, stddev=0.3)
    everybody = np.ones(300, bool)
    attacks = attack(
        releases, members, controls, groups={"trained": (trained, everybody), "held out": (~trained, everybody)}
    )
    assert area(attacks, "noised_tables_others_known", "trained").value > 0.95
    figure = area(attacks, "noised_tables_others_known", "held out")
    assert figure.low < 0.6


def test_the_generator_says_how_many_are_expected_in_each_cell() -> None:
    """Of latents that are the rows of a table, the expectation is that table."""
    people = draw(PLAIN, 300, 0)
    releases = observe(PLAIN, people, people, stddev=1.0)
    exact = dataclasses.replace(releases, generator=remember(PLAIN, people).generator)
    expected = _generated(exact, PLAIN, 0, CPU)
    sums = _sums(people, exact, PLAIN)[-len(expected) :]
    for one, other in zip(expected, sums, strict=True):
        assert one.sum() == pytest.approx(300, rel=1e-4)
        assert np.abs(one - other).max() < 8


def test_tables_that_were_not_measured_are_left_out() -> None:
    members, controls, strangers = (draw(PLAIN, 60, seed) for seed in range(3))
    releases = observe(PLAIN, members, strangers, stddev=1.0)
    table = releases.targets.tables["pair"]
    precision = table.precision.copy()
    index = list(_measured(releases, PLAIN))
    precision[index[0][1]] = 0
    targets = dataclasses.replace(
        releases.targets, tables={**releases.targets.tables, "pair": dataclasses.replace(table, precision=precision)}
    )
    fewer = dataclasses.replace(releases, targets=targets)
    assert len(list(_measured(fewer, PLAIN))) == len(index) - 1
    assert len(list(_tables(fewer, PLAIN))) == len(list(_tables(releases, PLAIN))) - 1
    assert area(attack(fewer, members, controls), "noised_tables").value is not None


def test_discriminators_that_stay_at_the_sites_leave_nothing_to_who_knows_nobody() -> None:
    members, controls, strangers = (draw(PLAIN, 60, seed) for seed in range(3))
    releases = observe(PLAIN, members, strangers, stddev=0.1)
    tables = {
        name: dataclasses.replace(table, precision=np.zeros_like(table.precision))
        for name, table in releases.targets.tables.items()
    }
    bare = dataclasses.replace(releases, targets=dataclasses.replace(releases.targets, tables=tables))
    everybody = np.ones(60, bool)
    attacks = attack(bare, members, controls, groups={"all": (everybody, everybody)})
    for population in ("everyone", "all"):
        assert area(attacks, "noised_tables", population).value is None
        assert area(attacks, "noised_tables", population).reason
    assert area(attacks, "noised_tables_others_known").value > 0.9


def test_the_same_seed_gives_the_same_and_so_many_play() -> None:
    members, controls, strangers = (draw(PLAIN, 90, seed) for seed in range(3))
    releases = observe(PLAIN, members, strangers, stddev=1.0)
    first = attack(releases, members, controls, most=50)
    assert area(first, "noised_tables").n == 100
    assert first == attack(releases, members, controls, most=50)
    assert first != attack(releases, members, controls, most=50, seed=1)
