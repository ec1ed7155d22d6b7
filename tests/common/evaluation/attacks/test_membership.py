"""The suite of one synthetic table: it finds copies, finds nothing where there is nothing, and plays fair."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KernelDensity

from common.data.windows import WindowedTable
from common.evaluation.attacks import membership
from common.evaluation.attacks.games import STATISTICS, strongest, widened
from common.evaluation.attacks.membership import ATTACKS, MembershipSuite, attack_membership
from common.evaluation.figures import Population
from common.study import Study, parse_study

COLOURS = ["red", "green", "blue"]
CLASSES = ["low", "high", "top"]


def make_study(**more: object) -> Study:
    return parse_study(
        {
            "name": "toy",
            "label": {"column": "risk", "positive": "high"},
            "columns": {
                "amount": {"type": "continuous", "min": 0, "max": 1000},
                "age": {"type": "continuous", "min": 0, "max": 100, "missing": True},
                "income": {"type": "continuous", "min": 0, "max": 100_000, "scale": "log"},
                "tenure": {"type": "continuous", "min": 0, "max": 100},
                "colour": {"type": "categorical", "categories": COLOURS, "missing": True},
                "risk": {"type": "categorical", "categories": CLASSES},
            },
            "privacy": {"epsilon": 1, "delta": 1e-6},
            **more,
        },
        source="test",
    )


STUDY = make_study()
WINDOWED = make_study(
    unit={"key": "who"},
    windows={
        "time": {"column": "hour", "type": "number"},
        "layout": "grid",
        "length": 6,
        "step": 1,
        "start": 0,
        "channels": {"pulse": {"type": "continuous", "min": 0, "max": 200, "missing": True}},
    },
)


def draw(rows: int, seed: int) -> WindowedTable:
    random = np.random.default_rng(seed)
    age = random.normal(50, 15, rows).clip(0, 100)
    records = pd.DataFrame(
        {
            "amount": (random.lognormal(3, 1, rows) + age).clip(0, 1000),
            "age": np.where(random.random(rows) < 0.05, np.nan, age),
            "income": random.lognormal(8, 1, rows).clip(0, 100_000),
            "tenure": random.gamma(2, 8, rows).clip(0, 100),
            "colour": pd.Categorical.from_codes(random.integers(-1, 3, rows), COLOURS),
            "risk": pd.Categorical.from_codes(random.choice(3, rows, p=[0.6, 0.3, 0.1]), CLASSES),
        }
    )
    return WindowedTable.without_windows(records)


def stack(*tables: WindowedTable) -> WindowedTable:
    return WindowedTable(
        pd.concat([table.records for table in tables], ignore_index=True),
        np.concatenate([table.values for table in tables]),
        np.concatenate([table.lengths for table in tables]),
    )


def alone(table: WindowedTable) -> Population:
    """Each row a unit of its own."""
    return Population(table, np.arange(len(table.records)))


def attack(
    synthetic: WindowedTable,
    members: Population,
    controls: Population,
    reference: Population,
    *,
    study: Study = STUDY,
    most: int = 1000,
    seed: int = 0,
) -> MembershipSuite:
    return attack_membership(
        synthetic, members, controls, reference, study, epsilon=1.0, delta=1e-6, seed=seed, most=most
    )


SIZE = 500
MEMBERS, CONTROLS, REFERENCE = (alone(draw(rows, seed)) for rows, seed in ((SIZE, 1), (SIZE, 2), (1000, 3)))


@cache
def against(copies: int) -> MembershipSuite:
    """Attacks on a table of some members and of fresh rows."""
    fresh = draw(SIZE - copies, 4)
    return attack(stack(MEMBERS.table.take(np.arange(copies)), fresh), MEMBERS, CONTROLS, REFERENCE)


def area(suite: MembershipSuite, name: str, population: str = "everyone") -> float:
    value = suite.attacks[name].populations[population]["auc"].value
    assert value is not None
    return value


def assert_contains_chance(suite: MembershipSuite) -> None:
    """No figure tells of a leak; all intervals hold at once with a chance of 95 % at least."""
    figures = [
        (name, figure)
        for one in suite.attacks.values()
        for population in one.populations.values()
        for name, figure in population.items()
        if figure.value is not None
    ]
    assert len(figures) > 60
    for name, figure in figures:
        wide = widened(figure, name, tried=len(figures))
        assert wide.low is not None
        assert wide.low <= (figure.chance or 0.0) <= (wide.high or 0.0)


# --- controls of the suite itself


@pytest.mark.parametrize("name", ["dcr", "dcr_difference", "neighbour_ratio"])
def test_a_generator_that_returns_its_rows_is_caught(name: str) -> None:
    everyone = against(SIZE).attacks[name].populations["everyone"]
    assert area(against(SIZE), name) > 0.95
    for statistic in ("auc", "advantage", "balanced_accuracy", "tpr_at_10"):
        assert (everyone[statistic].low or 0) > (everyone[statistic].ceiling or 1)


@pytest.mark.parametrize("name", ["domias", "likelihood_ratio", "neighbourhood"])
def test_what_looks_at_densities_sees_copies_too(name: str) -> None:
    assert (against(SIZE).attacks[name].populations["everyone"]["auc"].low or 0) > 0.52


@pytest.mark.statistical
def test_a_fresh_sample_of_the_population_gives_nothing_away() -> None:
    assert_contains_chance(against(0))


@pytest.mark.parametrize("name", ["dcr", "dcr_difference", "neighbour_ratio"])
def test_more_copies_give_more_away(name: str) -> None:
    areas = [area(against(copies), name) for copies in (0, SIZE // 2, SIZE)]
    assert areas[0] + 0.1 < areas[1] < areas[2] - 0.1


@pytest.mark.statistical
def test_fresh_rows_whose_columns_are_shuffled_give_nothing_away() -> None:
    random, table = np.random.default_rng(6), draw(SIZE, 5)
    shuffled = table.records.apply(lambda column: column.take(random.permutation(SIZE)).reset_index(drop=True))
    assert_contains_chance(attack(WindowedTable.without_windows(shuffled), MEMBERS, CONTROLS, REFERENCE))


def test_rows_near_members_are_caught_as_well() -> None:
    near = MEMBERS.table.take(np.arange(SIZE))
    random = np.random.default_rng(7)
    near.records["amount"] += random.normal(0, 1, SIZE)
    near.records["age"] = (near.records["age"] + random.normal(0, 0.5, SIZE)).clip(0, 100)
    suite = attack(near, MEMBERS, CONTROLS, REFERENCE)
    assert area(suite, "neighbour_ratio") > 0.8
    assert strongest(suite.attacks, statistic="auc")[0] in {"dcr", "dcr_difference", "neighbour_ratio"}


# --- the game


def test_the_suite_has_every_attack_population_and_statistic() -> None:
    suite = against(0)
    assert tuple(suite.attacks) == ATTACKS
    assert (suite.members, suite.controls, suite.duplicates) == (SIZE, SIZE, 0)
    for one in suite.attacks.values():
        assert "synthetic table" in one.adversary
        assert list(one.populations) == ["everyone", "outliers", "rare class"]
        assert all(tuple(figures) == STATISTICS for figures in one.populations.values())


def test_units_that_are_on_both_sides_do_not_play() -> None:
    twins = CONTROLS.table.take(np.arange(40))
    known = REFERENCE.table.take(np.arange(25))
    members = alone(stack(MEMBERS.table.take(np.arange(100)), twins, known))
    controls = alone(stack(CONTROLS.table.take(np.arange(160)), known.take(np.arange(5))))
    suite = attack(members.table, members, controls, REFERENCE)
    # 40 members are controls, who are out too, and 25 members and 5 controls are of the reference.
    assert suite.duplicates == 40 + 40 + 25 + 5
    assert suite.members == suite.controls == 100
    assert area(suite, "dcr") > 0.99


def test_as_many_members_play_as_controls_and_no_more_than_asked_for() -> None:
    few = CONTROLS.take(np.arange(200))
    assert [attack(draw(50, 8), MEMBERS, few, REFERENCE).members for _ in range(1)] == [200]
    suite = attack(draw(50, 8), MEMBERS, few, REFERENCE, most=120)
    assert (suite.members, suite.controls) == (120, 120)
    assert suite.attacks["dcr"].populations["everyone"]["auc"].n == 240


def test_a_copy_is_seen_in_a_table_of_which_only_a_part_is_used() -> None:
    synthetic = stack(draw(4000, 9), MEMBERS.table)
    suite = attack(synthetic, MEMBERS, CONTROLS, REFERENCE, most=100)  # 1,000 rows of 4,500 are used
    assert area(suite, "dcr") == 1.0


def test_one_row_that_was_copied_is_enough_to_find_its_unit() -> None:
    study = make_study(unit={"key": "who", "max_records": 4})
    sides = [Population(draw(800, seed), np.repeat(np.arange(200), 4)) for seed in (10, 11)]
    synthetic = sides[0].table.take(np.arange(0, 800, 4))
    suite = attack(synthetic, *sides, REFERENCE, study=study)
    assert (suite.members, suite.controls) == (200, 200)
    assert area(suite, "dcr") == 1.0


def test_a_unit_that_shares_one_row_of_several_does_not_play() -> None:
    study = make_study(unit={"key": "who", "max_records": 4})
    first, second = (Population(draw(400, seed), np.repeat(np.arange(100), 4)) for seed in (10, 11))
    records = second.table.records.copy()
    records.iloc[7] = first.table.records.iloc[42]
    suite = attack(
        draw(50, 12), first, Population(second.table.without_windows(records), second.units), REFERENCE, study=study
    )
    assert (suite.duplicates, suite.members, suite.controls) == (2, 99, 99)


def windowed(rows: int, seed: int) -> WindowedTable:
    random = np.random.default_rng(seed)
    values = random.normal(80, 20, (rows, 6, 1)).clip(0, 200)
    values[random.random(values.shape) < 0.2] = np.nan
    return WindowedTable(draw(rows, seed).records, values, np.full(rows, 6))


def test_windows_are_attacked_too() -> None:
    members, controls, reference = (alone(windowed(300, seed)) for seed in (13, 14, 15))
    swapped = WindowedTable(members.table.records, members.table.values[::-1], members.table.lengths)
    whole, part = (attack(table, members, controls, reference, study=WINDOWED) for table in (members.table, swapped))
    assert area(whole, "dcr") == 1.0
    assert 0.55 < area(part, "dcr") < 1.0


# --- victims of their own


def test_outliers_are_found_by_one_rule_on_both_sides() -> None:
    far = draw(100, 17)
    for name, low, high in (("amount", 900, 1000), ("age", 0, 5), ("income", 90_000, 100_000), ("tenure", 80, 100)):
        far.records[name] = np.linspace(low, high, 100)
    members, controls = (
        alone(stack(side.table.take(np.arange(450)), far.take(rows)))
        for side, rows in ((MEMBERS, np.arange(0, 100, 2)), (CONTROLS, np.arange(1, 100, 2)))
    )
    suite = attack(stack(draw(450, 18), far.take(np.arange(0, 100, 2))), members, controls, REFERENCE)
    # Most outliers are those far ones, beyond all that the reference has; the members' are in the table.
    assert suite.attacks["dcr"].populations["outliers"]["auc"].n == 100
    assert area(suite, "dcr", "outliers") > 0.85
    assert area(suite, "dcr") < 0.7


def test_the_rare_class_is_the_least_frequent_of_the_label() -> None:
    tables = [side.table.records["risk"] for side in (MEMBERS, CONTROLS)]
    rare = sum(int((table == "top").sum()) for table in tables)
    assert rare < min(sum(int((table == name).sum()) for table in tables) for name in ("low", "high"))
    assert against(0).attacks["dcr"].populations["rare class"]["auc"].n == rare
    copied = MEMBERS.table.take((MEMBERS.table.records["risk"] == "top").to_numpy())
    suite = attack(stack(copied, draw(400, 19)), MEMBERS, CONTROLS, REFERENCE)
    assert area(suite, "dcr", "rare class") > 0.95
    assert area(suite, "dcr") < 0.65


# --- what cannot be played


@pytest.mark.parametrize(
    ("synthetic", "controls", "reference", "reason"),
    [
        (draw(0, 0), CONTROLS, REFERENCE, "synthetic table has fewer than 20 rows"),
        (draw(50, 0), CONTROLS, alone(draw(19, 0)), "reference has fewer than 20 rows"),
        (draw(50, 0), alone(draw(0, 0)), REFERENCE, "no unit can play"),
        (draw(50, 0), MEMBERS, REFERENCE, "no unit can play"),
        (draw(50, 0), alone(draw(5, 0)), REFERENCE, "5 members and 5 controls: too few"),
    ],
)
def test_what_cannot_be_played_has_a_reason(
    synthetic: WindowedTable, controls: Population, reference: Population, reason: str
) -> None:
    suite = attack(synthetic, MEMBERS, controls, reference)
    assert tuple(suite.attacks) == ATTACKS
    for one in suite.attacks.values():
        figures = one.populations["everyone"]
        assert set(figures) == set(STATISTICS)
        assert all(figure.value is None and reason in (figure.reason or "") for figure in figures.values())


def test_tables_without_any_variety_have_figures() -> None:
    same = draw(1, 20).take(np.zeros(60, dtype=np.int64))
    suite = attack(same, MEMBERS, CONTROLS, alone(same))
    assert all(
        np.isfinite(one.populations["everyone"][name].value or 0.0)
        for one in suite.attacks.values()
        for name in ("auc", "advantage", "tpr_at_10")
    )
    assert suite.attacks["classifier"].populations["everyone"]["auc"].value == 0.5


def test_the_same_seed_gives_the_same_suite() -> None:
    small = [side.take(np.arange(100)) for side in (MEMBERS, CONTROLS, REFERENCE)]
    tables = [draw(3000, 21), *small]
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr] # noqa: NPY002
    first, again, other = (attack(*tables, most=50, seed=seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert first == again
    assert area(first, "domias") != area(other, "domias")  # other units, and other rows of the table
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr] # noqa: NPY002


# --- densities


def test_densities_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_CELLS", 700)  # pieces of 7 rows
    random = np.random.default_rng(22)
    rows, support = random.normal(size=(40, 3)), random.normal(size=(100, 3))
    width = 100 ** (-1 / 7) / 2
    expected = KernelDensity(bandwidth=width).fit(support).score_samples(rows) + 3 * np.log(width * np.sqrt(2 * np.pi))
    assert membership._log_density(rows, support) == pytest.approx(expected, abs=1e-9)
    assert membership._log_density(rows + 1000, support) == pytest.approx(
        KernelDensity(bandwidth=width).fit(support).score_samples(rows + 1000) + 3 * np.log(width * np.sqrt(2 * np.pi)),
        rel=1e-9,
    )


def test_influence_is_the_gain_in_likelihood_of_the_nearest_synthetic_rows() -> None:
    random = np.random.default_rng(23)
    points = [random.normal(size=(size, 4)).astype(np.float32) for size in (6, 50, 80)]
    nearest = np.stack([random.permutation(50)[:20] for _ in range(6)])
    scene = membership._Scene(*points, np.zeros((6, 20)), np.zeros((6, 20)), nearest, 0.0)
    found = dict(membership._densities(scene, np.random.default_rng(0)))["likelihood_ratio"]
    centred = [part - points[2].mean(axis=0) for part in points]
    values, vectors = np.linalg.eigh(np.cov(points[2].T))
    rows, synthetic, reference = (part @ vectors / np.sqrt(values) for part in centred)
    width = 80 ** (-1 / 8) / 2

    def kernels(one: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-((others - one) ** 2).sum(axis=1) / (2 * width**2)))

    for row, chosen, score in zip(rows, nearest, found, strict=True):
        before = [kernels(synthetic[at], reference).sum() for at in chosen[:10]]
        after = [kernels(synthetic[at], np.vstack([reference, row])).sum() for at in chosen[:10]]
        assert score == pytest.approx(np.log(after).sum() - np.log(before).sum(), rel=1e-3)
