"""Who holds what: a unit is at one site, every record is dealt once, and every site has somebody."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ExitCode, PrivShareError, SchemaError, StudyError
from common.study import Study, parse_study
from simulations.splits import resembling, set_aside, split, units_of

LABELS = ("bad", "good", "new")
REGIONS = ("east", "north", "south", "west")


def study_with(key: str | None) -> Study:
    return parse_study(
        {
            "name": "splits",
            "unit": {"key": key},
            "label": {"column": "outcome", "positive": "bad"},
            "ignore": ["region"] if key else ["region", "person"],
            "columns": {
                "amount": {"type": "integer", "min": 0, "max": 9},
                "channel": {"type": "categorical", "categories": ["desk", "web"]},
                "outcome": {"type": "categorical", "categories": list(LABELS)},
            },
            "privacy": {"epsilon": 1, "delta": 1e-6},
        },
        source="test",
    )


KEYED = study_with("person")
UNKEYED = study_with(None)


def table_of(records: list[tuple[int, str, str]]) -> pd.DataFrame:
    """A table of text from (unit, outcome, region)."""
    return pd.DataFrame(
        {
            "person": [f"P{unit}" for unit, _, _ in records],
            "amount": [str(at % 10) for at in range(len(records))],
            "channel": ["desk"] * len(records),
            "outcome": [outcome for _, outcome, _ in records],
            "region": [region for _, _, region in records],
        },
        dtype="str",
    )


def even_table(units: int, records: int = 2) -> pd.DataFrame:
    """Some units of as many records each, labels and regions in turn."""
    return table_of([(unit, LABELS[unit % 3], REGIONS[unit % 4]) for unit in range(units) for _ in range(records)])


tables = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(LABELS), st.sampled_from(REGIONS)), min_size=1, max_size=80
).map(table_of)


@st.composite
def cases(draw: st.DrawFn) -> tuple[pd.DataFrame, Study, int, str, int]:
    """A table, its study, a number of sites that the table is enough for, a way of splitting, and a seed."""
    table = draw(tables)
    study = draw(st.sampled_from([KEYED, UNKEYED]))
    how = draw(st.sampled_from(["iid", "dirichlet:0.01", "dirichlet:0.5", "dirichlet:1e5", "column:region"]))
    most = units_of(table, study).count
    if how.startswith("column:"):
        # A value that no unit has in its first record does not make a site.
        first = table if study.unit.key is None else table.drop_duplicates("person")
        most = first["region"].nunique()
    return table, study, draw(st.integers(1, most)), how, draw(st.integers(0, 2**32 - 1))


@given(cases())
@settings(deadline=None, max_examples=150)
def test_every_record_is_dealt_to_exactly_one_site(case: tuple[pd.DataFrame, Study, int, str, int]) -> None:
    table, study, sites, how, seed = case
    positions = split(table, study, sites=sites, how=how, seed=seed)
    assert len(positions) == sites
    assert sorted(np.concatenate(positions).tolist()) == list(range(len(table)))


@given(cases())
@settings(deadline=None, max_examples=150)
def test_a_unit_is_at_one_site_and_every_site_has_a_unit(case: tuple[pd.DataFrame, Study, int, str, int]) -> None:
    table, study, sites, how, seed = case
    number = units_of(table, study).number
    held = [set(number[rows].tolist()) for rows in split(table, study, sites=sites, how=how, seed=seed)]
    assert all(held)
    assert sum(map(len, held)) == len(set().union(*held)) == units_of(table, study).count


@given(cases())
@settings(deadline=None, max_examples=50)
def test_the_same_seed_deals_the_same_records(case: tuple[pd.DataFrame, Study, int, str, int]) -> None:
    table, study, sites, how, seed = case
    once, again = (split(table, study, sites=sites, how=how, seed=seed) for _ in range(2))
    assert all(np.array_equal(first, second) for first, second in zip(once, again, strict=True))


@pytest.mark.parametrize("how", ["iid", "dirichlet:1"])
def test_another_seed_deals_other_records(how: str) -> None:
    table = even_table(60)
    once, other = (split(table, KEYED, sites=3, how=how, seed=seed) for seed in (1, 2))
    assert [rows.tolist() for rows in once] != [rows.tolist() for rows in other]


@pytest.mark.parametrize("sites", [1, 2, 7, 32])
def test_iid_gives_sites_the_same_number_of_units_but_for_one(sites: int) -> None:
    number = units_of(even_table(60), KEYED).number
    sizes = [len(set(number[rows])) for rows in split(even_table(60), KEYED, sites=sites, how="iid", seed=3)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_does_not_deal_units_in_the_order_of_the_table() -> None:
    table = even_table(60, records=1)
    first = split(table, KEYED, sites=2, how="iid", seed=3)[0].tolist()
    assert first != list(range(0, 60, 2))
    assert first != list(range(30))


def purity(concentration: str) -> float:
    """Mean share of a site's most frequent label, over sites and seeds."""
    table = even_table(300, records=1)
    shares = [
        table["outcome"].iloc[rows].value_counts(normalize=True).max()
        for seed in range(20)
        for rows in split(table, KEYED, sites=3, how=f"dirichlet:{concentration}", seed=seed)
    ]
    return float(np.mean(shares))


def test_a_smaller_concentration_makes_labels_more_unequal() -> None:
    # Equal labels give 1/3; a label that is at one site gives 1, or 1/2 where two such labels meet.
    equal, mixed, apart = purity("1e5"), purity("1"), purity("0.01")
    assert equal < 0.36
    assert equal + 0.1 < mixed < apart - 0.1
    assert apart > 0.75


def test_as_many_sites_as_units_get_one_unit_each() -> None:
    for how in ("iid", "dirichlet:0.01", "column:person"):
        positions = split(even_table(12), KEYED, sites=12, how=how, seed=0)
        assert [len(rows) for rows in positions] == [2] * 12, how


def test_a_column_keeps_its_values_together() -> None:
    table = even_table(40)
    for sites in (1, 2, 3, 4):
        positions = split(table, KEYED, sites=sites, how="column:region", seed=0)
        held = [set(table["region"].iloc[rows]) for rows in positions]
        assert sum(map(len, held)) == len(REGIONS), sites


def test_the_largest_values_of_a_column_are_dealt_apart() -> None:
    sizes = {"east": 30, "north": 20, "south": 10, "west": 5}
    regions = [region for region, size in sizes.items() for _ in range(size)]
    table = table_of([(unit, "good", region) for unit, region in enumerate(regions)])
    held = [set(table["region"].iloc[rows]) for rows in split(table, KEYED, sites=3, how="column:region", seed=0)]
    assert held == [{"east"}, {"north"}, {"south", "west"}]


def test_a_unit_of_two_values_follows_its_first_record() -> None:
    table = table_of([(0, "good", "east"), (1, "good", "east"), (2, "good", "west"), (0, "good", "west")])
    positions = split(table, KEYED, sites=2, how="column:region", seed=0)
    assert sorted(rows.tolist() for rows in positions) == [[0, 1, 3], [2]]


def test_a_split_column_may_be_one_that_the_study_ignores_or_the_unit_key() -> None:
    for how in ("column:region", "column:person", "column:outcome"):
        assert len(split(even_table(40), KEYED, sites=3, how=how, seed=0)) == 3


@given(tables, st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_whole_units_are_set_aside_and_as_many_as_asked_for(
    table: pd.DataFrame, first: float, second: float, seed: int
) -> None:
    units = units_of(table, KEYED)
    part_of = set_aside(units, shares=(first, second), seed=seed)
    assert part_of.shape == (len(table),)
    parts = [set(units.number[part_of == part]) for part in (0, 1, 2)]
    assert sum(map(len, parts)) == units.count
    assert len(set().union(*parts)) == units.count
    assert len(parts[1]) == round(first * units.count)
    assert len(parts[1] | parts[2]) == round((first + second) * units.count)
    assert np.array_equal(part_of, set_aside(units, shares=(first, second), seed=seed))


def test_how_what_is_set_aside_is_shared_out_does_not_change_what_sites_get() -> None:
    units = units_of(even_table(60), KEYED)
    whole, shared = (set_aside(units, shares=shares, seed=1) for shares in ((0.2,), (0.08, 0.08, 0.04)))
    assert np.array_equal(whole == 0, shared == 0)


def test_another_seed_sets_other_units_aside() -> None:
    units = units_of(even_table(60), KEYED)
    assert not np.array_equal(set_aside(units, shares=(0.2,), seed=1), set_aside(units, shares=(0.2,), seed=2))


def test_a_space_at_the_end_of_a_key_does_not_make_another_unit() -> None:
    # The parsed table has no such spaces: two sites would hold one unit.
    table = even_table(20).assign(person=[f"P{at // 2}{' ' * (at % 2)}" for at in range(40)])
    assert units_of(table, KEYED).count == 20


def test_without_a_key_every_record_is_a_unit() -> None:
    assert units_of(even_table(20), UNKEYED).count == 40


@pytest.mark.parametrize(
    ("how", "sites", "error", "code"),
    [
        ("iid", 41, SchemaError, ExitCode.MORE_SITES_THAN_UNITS),
        ("dirichlet:1", 41, SchemaError, ExitCode.MORE_SITES_THAN_UNITS),
        ("column:region", 5, SchemaError, ExitCode.MORE_SITES_THAN_UNITS),
        ("column:absent", 2, SchemaError, ExitCode.SPLIT_COLUMN_UNKNOWN),
        ("column:", 2, SchemaError, ExitCode.SPLIT_COLUMN_UNKNOWN),
        ("column", 2, StudyError, ExitCode.USAGE),
        ("", 2, StudyError, ExitCode.USAGE),
        ("IID", 2, StudyError, ExitCode.USAGE),
        ("iid ", 2, StudyError, ExitCode.USAGE),
        ("dirichlet", 2, StudyError, ExitCode.USAGE),
        ("dirichlet:", 2, StudyError, ExitCode.USAGE),
        ("dirichlet:0", 2, StudyError, ExitCode.USAGE),
        ("dirichlet:-1", 2, StudyError, ExitCode.USAGE),
        ("dirichlet:nan", 2, StudyError, ExitCode.USAGE),
        ("dirichlet:inf", 2, StudyError, ExitCode.USAGE),
        ("dirichlet:1e999", 2, StudyError, ExitCode.USAGE),
        ("dirichlet:1.2.3", 2, StudyError, ExitCode.USAGE),
    ],
)
def test_a_split_that_cannot_be_is_refused_by_name(
    how: str, sites: int, error: type[PrivShareError], code: ExitCode
) -> None:
    with pytest.raises(error) as refused:
        split(even_table(40), KEYED, sites=sites, how=how, seed=0)
    assert refused.value.code == code
    assert ("sites=41" if sites == 41 else f"split={how}:") in str(refused.value)


# --- who resembles a site's units


def test_others_that_resemble_a_site_are_of_its_values_where_a_column_split() -> None:
    table = even_table(80)
    own, others = np.arange(100), np.arange(100, 160)
    site = own[np.isin(table["region"][own], ["north", "west"])]
    found = resembling(table, KEYED, own=site, others=others, how="column:region", seed=0)
    assert set(table["region"][found]) == {"north", "west"}
    assert len(found) == 30


def test_all_others_resemble_a_site_where_units_were_dealt_by_chance() -> None:
    others = np.arange(100, 160)
    found = resembling(even_table(80), KEYED, own=np.arange(40), others=others, how="iid", seed=0)
    assert found.tolist() == others.tolist()


def test_others_that_resemble_a_site_have_its_label_shares_where_labels_split() -> None:
    table = even_table(300)
    own, others = np.arange(400), np.arange(400, 600)
    labels = table["outcome"][own]
    site = np.concatenate([own[labels == "bad"], own[labels == "good"][:66]])  # 2 to 1, and nobody new
    found = resembling(table, KEYED, own=site, others=others, how="dirichlet:0.5", seed=0)
    counts = table["outcome"][found].value_counts()
    assert set(counts.index) == {"bad", "good"}
    assert counts["bad"] > 50
    assert abs(counts["bad"] - 2 * counts["good"]) <= 4
    assert set(np.unique(table["person"][found], return_counts=True)[1]) == {2}  # units are whole
    again = resembling(table, KEYED, own=site, others=others, how="dirichlet:0.5", seed=0)
    assert again.tolist() == found.tolist()
