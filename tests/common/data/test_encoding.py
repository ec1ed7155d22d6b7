"""Cells and values say the same: a value drawn in a cell is encoded as that cell, for every kind of column.

Guarantees here are algebra, checked on columns that hypothesis makes up, with bounds from 1e-300 to 1e300.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from common.data.encoding import Grid, encode_table, make_grid, make_grids
from common.data.schema import (
    COLUMN_TYPES,
    CategoricalColumn,
    Column,
    DatetimeColumn,
    IntegerColumn,
    NumericColumn,
    WholeColumn,
    parse_table,
)
from tests.common.data.columns import moment_columns

_COLUMN: TypeAdapter[Column] = TypeAdapter(Column)
SCALES = ("linear", "log", "asinh")
LARGEST = 2**53 - 1
BEYOND = (2**53, 2**60 + 12345, 2**63 - 1)


def column(kind: str, **keys: Any) -> Column:
    return _COLUMN.validate_python({"type": kind, **keys})


def grid(kind: str, **keys: Any) -> Grid:
    return make_grid("x", column(kind, **keys))


@st.composite
def columns(draw: st.DrawFn, *, kinds: Sequence[str] = tuple(COLUMN_TYPES), least_special: int = 0) -> Column:
    """Any column that a study may have, with so many special values at least."""
    kind = draw(st.sampled_from(kinds))
    if kind == "datetime":
        return draw(moment_columns(least_special=least_special))
    keys: dict[str, Any] = {"missing": draw(st.booleans())}
    if kind == "categorical":
        keys["categories"] = draw(st.lists(st.text("abc", min_size=1), min_size=2, max_size=6, unique=True))
        keys["unlisted"] = draw(st.sampled_from(["refuse", "other"]))
        return column(kind, **keys)
    keys["scale"] = draw(st.sampled_from(SCALES))
    keys["cells"] = draw(st.sampled_from([2, 3, 16, 128, 4096]))
    decimals = None
    if kind == "integer":
        size: float = draw(st.sampled_from([10, 1000, 10**6, LARGEST, *BEYOND]))
        ends = draw(st.lists(st.integers(-int(size), int(size)), min_size=2, max_size=2, unique=True).map(sorted))
        special = draw(st.lists(st.integers(*ends), min_size=least_special, max_size=4, unique=True))
    else:
        size = draw(st.sampled_from([1e-300, 1.0, 1000.0, 1e9, 1e300]))
        if 1 <= size <= 1e9:
            decimals = keys["decimals"] = draw(st.sampled_from([None, 0, 1, 2, 6]))
        rounded = (lambda value: value) if decimals is None else (lambda value: round(value, decimals))
        numbers = st.floats(-size, size).map(rounded)
        ends = draw(st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted))
        inside = st.floats(*ends, exclude_max=True).map(rounded) | st.just(ends[0])
        # The last float below the maximum shares the closed last cell with it.
        apart = inside.filter(lambda value: value < np.nextafter(ends[1], -np.inf))
        special = draw(st.lists(apart, min_size=least_special, max_size=4, unique=True))
    keys |= {"min": ends[0], "max": ends[1], "special": special}
    # What a scale with so small a unit would overflow on is refused.
    keys["scale_unit"] = draw(st.sampled_from([1, 1, 0.01, 100, 1e300, *([1e-300] if size <= 1e6 else [])]))
    return column(kind, **keys)


def all_cells(grid: Grid) -> np.ndarray:
    return np.arange(grid.n_cells)


def steps_of(rule: NumericColumn) -> int | None:
    """Numbers in one unit: those that are written with the column's decimals; None for all that a float holds."""
    if isinstance(rule, WholeColumn):
        return 1
    return None if rule.decimals is None else 10**rule.decimals


def dtype_of(rule: Column) -> str:
    if isinstance(rule, CategoricalColumn):
        return "category"
    if isinstance(rule, IntegerColumn):
        return "Int64" if rule.missing else "int64"
    if isinstance(rule, DatetimeColumn):
        return "datetime64[ms]" if rule.timezone is None else f"datetime64[ms, {rule.timezone}]"
    return "float64"


def numbers_of(values: pd.Series, rule: NumericColumn) -> list[Any]:
    """Present values as they are counted, whole ones exactly."""
    present = values[values.notna()]
    return (rule.to_whole(present) if isinstance(rule, WholeColumn) else present).tolist()


@given(columns(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=300)
def test_a_value_of_a_cell_is_encoded_as_that_cell_and_lies_within_the_bounds(rule: Column, seed: int) -> None:
    cut = make_grid("x", rule)
    cells = all_cells(cut)
    values = cut.decode(cells, np.random.default_rng(seed))
    assert cut.encode(values).tolist() == cells.tolist()
    assert str(values.dtype) == dtype_of(rule)
    assert values.name == "x"
    if not isinstance(rule, CategoricalColumn):
        assert all(rule.min <= number <= rule.max for number in numbers_of(values, rule))


@given(columns(), st.data(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_a_value_that_was_encoded_and_drawn_again_stays_in_its_cell(
    rule: Column, data: st.DataObject, seed: int
) -> None:
    cut = make_grid("x", rule)
    if isinstance(rule, CategoricalColumn):
        some: Any = st.sampled_from(rule.values)
    else:
        inside = st.integers(rule.min, rule.max) if isinstance(rule, WholeColumn) else st.floats(rule.min, rule.max)
        some = st.one_of(inside, st.sampled_from([rule.min, rule.max, *rule.special]))
    written = data.draw(st.lists(some, min_size=1, max_size=10))
    if isinstance(rule, DatetimeColumn):
        written = [rule.clock.written(second) for second in rule.clock.seconds(np.array(written)).tolist()]
    cells = [
        one if isinstance(one, str) else repr(int(one) if isinstance(rule, IntegerColumn) else float(one))
        for one in written
    ]
    cells += [""] * int(rule.missing)
    values = parse_table(pd.DataFrame({"x": cells}, dtype="str"), {"x": rule})["x"]
    codes = cut.encode(values)
    assert codes.dtype == np.int64
    assert ((codes >= 0) & (codes < cut.n_cells)).all()
    drawn = cut.decode(codes, np.random.default_rng(seed))
    assert drawn.dtype == values.dtype
    assert cut.encode(drawn).tolist() == codes.tolist()
    assert drawn.isna().tolist() == values.isna().tolist()
    if isinstance(rule, CategoricalColumn):
        assert drawn.dropna().tolist() == values.dropna().tolist()


@given(columns())
@settings(deadline=None, max_examples=200)
def test_edges_rise_from_the_lower_bound_to_the_upper(rule: Column) -> None:
    cut = make_grid("x", rule)
    assert cut.n_cells == cut.n_values + rule.missing
    if isinstance(rule, CategoricalColumn):
        assert cut.edges is None
        assert not cut.is_ordered
        assert cut.n_values == len(rule.values)
        return
    assert cut.is_ordered
    assert cut.edges is not None
    assert cut.starts is not None
    assert all(before < after for before, after in pairwise(cut.starts.tolist()))
    steps = steps_of(rule)
    after = rule.max if steps is None else (round(rule.max * steps) + 1) / steps
    assert (cut.edges[0], cut.edges[-1]) == (float(rule.min), float(after))
    assert cut.starts.dtype == (np.int64 if isinstance(rule, WholeColumn) else np.float64)
    if isinstance(rule, WholeColumn):
        assert (cut.starts[0], cut.lasts[-1]) == (rule.min, rule.max)
    assert 1 <= cut.n_values <= rule.cells + 2 * len(rule.special)


@given(columns(kinds=("integer", "continuous", "datetime"), least_special=1), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_a_special_value_has_a_cell_to_itself_and_comes_back_exactly(rule: Column, seed: int) -> None:
    assert not isinstance(rule, CategoricalColumn)
    cut = make_grid("x", rule)
    if isinstance(rule, WholeColumn):
        whole = np.array(rule.special, dtype=np.int64)
        own = cut.encode(rule.from_whole(whole, np.zeros(len(whole), dtype=bool)))
        assert len(set(own)) == len(whole)
        assert numbers_of(cut.decode(own, np.random.default_rng(seed)), rule) == list(rule.special)
        others = sorted({one + by for one in rule.special for by in (-1, 1)} - set(rule.special))
        near = np.array([one for one in others if rule.min <= one <= rule.max], dtype=np.int64)
        assert not set(cut.encode(rule.from_whole(near, np.zeros(len(near), dtype=bool)))) & set(own)
        return
    special = pd.Series(rule.special, name="x", dtype="float64")
    cells = cut.encode(special)
    assert len(set(cells)) == len(special)
    for _ in range(3):
        assert cut.decode(cells, np.random.default_rng(seed)).astype("float64").tolist() == special.tolist()
    steps = steps_of(rule)
    if steps is None:
        beside = np.concatenate([np.nextafter(special, -np.inf), np.nextafter(special, np.inf)])
    else:
        beside = np.concatenate([np.rint(special * steps) - 1, np.rint(special * steps) + 1]) / steps
    beside = beside[(beside >= rule.min) & (beside <= rule.max) & ~np.isin(beside, special)]
    assert not set(cut.encode(pd.Series(beside))) & set(cells)


@pytest.mark.parametrize("kind", ["integer", "continuous"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("cells", [2, 128, 4096])
@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (0, 1),
        (-1, 0),
        (7, 8),
        (-(10**6), -(10**6) + 3),
        (-LARGEST, LARGEST),
        # So far out that on a bent scale several edges fall on one float, or beyond a bound.
        (2**52, 2**52 + 300),
        (LARGEST - 3000, LARGEST),
        (10**15, 10**15 + 100_000),
        (-(10**15) - 100_000, -(10**15)),
    ],
)
def test_cells_and_values_agree_at_extreme_whole_bounds(
    kind: str, scale: str, cells: int, lower: int, upper: int
) -> None:
    cut = grid(kind, min=lower, max=upper, scale=scale, cells=cells, missing=True)
    for seed in range(5):
        values = cut.decode(all_cells(cut), np.random.default_rng(seed))
        assert cut.encode(values).tolist() == all_cells(cut).tolist()
        assert values.dropna().between(lower, upper).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("cells", [2, 128, 4096])
@pytest.mark.parametrize(
    ("lower", "upper"),
    [(-(2**63), 2**63 - 1), (2**63 - 2, 2**63 - 1), (-(2**63), 5), (2**62, 2**62 + 1000), (-(2**63), -(2**63) + 10**6)],
)
def test_cells_and_values_agree_at_the_ends_of_int64(scale: str, cells: int, lower: int, upper: int) -> None:
    rule = column("integer", min=lower, max=upper, scale=scale, cells=cells, special=[upper], missing=True)
    assert isinstance(rule, IntegerColumn)
    cut = make_grid("x", rule)
    for seed in range(5):
        values = cut.decode(all_cells(cut), np.random.default_rng(seed))
        assert cut.encode(values).tolist() == all_cells(cut).tolist()
        assert all(lower <= number <= upper for number in numbers_of(values, rule))


def test_far_from_zero_cells_are_as_fine_as_near_it_and_every_number_of_one_is_drawn() -> None:
    rule = column("integer", min=2**62, max=2**62 + 1023, cells=128)
    cut = make_grid("x", rule)
    assert cut.starts is not None
    assert (cut.starts - 2**62).tolist() == list(range(0, 1024, 8))
    drawn = cut.decode(np.full(1000, 127), np.random.default_rng(0))
    assert sorted(set(drawn)) == list(range(2**62 + 1016, 2**62 + 1024))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("unit", [1, 1e-6, 1e300])
@pytest.mark.parametrize(
    ("lower", "upper"),
    [(1e-300, 1e300), (-1e300, 1e300), (-1e300, -1e-300), (0, 1e-300), (0, 5e-324), (1, 1.0000000000000002), (-5, -4)],
)
def test_cells_and_values_agree_at_extreme_real_bounds(scale: str, unit: float, lower: float, upper: float) -> None:
    try:
        cut = grid("continuous", min=lower, max=upper, scale=scale, scale_unit=unit)
    except ValidationError as refused:
        assert "scale_unit" in str(refused)  # noqa: PT017 (a scale that overflows is refused by name)
        return
    for seed in range(5):
        values = cut.decode(all_cells(cut), np.random.default_rng(seed))
        assert cut.encode(values).tolist() == all_cells(cut).tolist()
        assert values.between(lower, upper).all()


@pytest.mark.parametrize("scale", SCALES)
def test_each_whole_number_has_a_cell_of_its_own_where_there_is_room(scale: str) -> None:
    cut = grid("integer", min=-3, max=12, cells=16, scale=scale, special=[0])
    numbers = pd.Series(np.arange(-3, 13))
    assert cut.encode(numbers).tolist() == list(range(16))
    assert cut.decode(np.arange(16), np.random.default_rng(0)).tolist() == numbers.tolist()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["integer", "continuous"])
def test_edges_are_evenly_spaced_on_the_scale_of_the_column(kind: str, scale: str) -> None:
    low, high, unit = -1e6, 1e9, 10.0
    cut = grid(kind, min=low, max=high, cells=64, scale=scale, scale_unit=unit)
    assert cut.edges is not None
    on_scale = {
        "linear": cut.edges,
        "log": np.log1p((cut.edges - low) / unit),
        "asinh": np.arcsinh(cut.edges / unit),
    }[scale]
    # A whole number's cell begins at one: the first cells of a bent scale move by up to 1, a tenth of its unit.
    widths = np.diff(on_scale)
    slack = 1e-6 if kind == "continuous" else 0.2
    np.testing.assert_allclose(widths, (on_scale[-1] - on_scale[0]) / 64, rtol=slack, atol=slack * widths.mean())
    assert cut.n_values == 64


def test_values_are_drawn_evenly_inside_a_cell() -> None:
    cell = np.zeros(30_000, dtype=np.int64)
    real = grid("continuous", min=0, max=10, cells=2).decode(cell, np.random.default_rng(1))
    # False alarm below 1e-6: the mean of 30,000 draws on (0, 5) has standard deviation 0.0083.
    assert abs(real.mean() - 2.5) < 0.042
    assert real.max() > 4.99
    assert real.min() < 0.01
    whole = grid("integer", min=0, max=9, cells=2).decode(cell, np.random.default_rng(1)).value_counts()
    # Each of 0 .. 4 has 6,000 draws in the mean, with standard deviation 69.
    assert sorted(whole.index) == [0, 1, 2, 3, 4]
    assert whole.between(5650, 6350).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("decimals", "lower", "upper"), [(1, 0, 40), (2, 0.01, 1000), (0, -7, 300), (1, -0.1, 1), (3, -1, 1)]
)
def test_numbers_with_fixed_decimals_are_drawn_in_their_own_cells(
    scale: str, decimals: int, lower: float, upper: float
) -> None:
    cut = grid("continuous", min=lower, max=upper, decimals=decimals, scale=scale)
    for seed in range(5):
        values = cut.decode(all_cells(cut), np.random.default_rng(seed))
        assert cut.encode(values).tolist() == all_cells(cut).tolist()
        # What is written with so many decimals is the same number: nothing is lost in the file.
        assert [float(f"{value:.{decimals}f}") for value in values] == values.tolist()
        assert values.between(lower, upper).all()


def test_rounding_does_not_make_special_values_of_others() -> None:
    cut = grid("continuous", min=0, max=40, decimals=1, scale="log", special=[0, 12.5])
    cells = np.repeat(all_cells(cut), 200)
    values = cut.decode(cells, np.random.default_rng(0))
    for special in (0.0, 12.5):
        own = cut.encode(pd.Series([special]))[0]
        assert (values[cells == own] == special).all()
        assert (values[cells != own] != special).all()


def test_missing_is_the_last_cell_and_no_value_shares_it() -> None:
    for kind, keys in (("integer", {"min": 0, "max": 9}), ("continuous", {"min": 0, "max": 9})):
        cut = grid(kind, **keys, missing=True)
        values = parse_table(pd.DataFrame({"x": ["0", "", "9"]}), {"x": cut.column})["x"]
        assert cut.encode(values).tolist() == [0, cut.n_cells - 1, cut.n_values - 1]
    cut = grid("categorical", categories=["a", "b"], unlisted="other", missing=True)
    values = parse_table(pd.DataFrame({"x": ["b", "", "z"]}), {"x": cut.column})["x"]
    assert cut.encode(values).tolist() == [1, 3, 2]
    assert cut.decode(np.array([3, 2]), np.random.default_rng(0)).isna().tolist() == [True, False]


@given(columns(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_no_cells_give_no_values_of_the_same_dtype_and_a_seed_gives_the_same_values(rule: Column, seed: int) -> None:
    cut = make_grid("x", rule)
    none = cut.decode(np.array([], dtype=np.int64), np.random.default_rng(0))
    assert len(none) == 0
    assert str(none.dtype) == dtype_of(rule)
    once, again = (cut.decode(all_cells(cut), np.random.default_rng(seed)) for _ in range(2))
    pd.testing.assert_series_equal(once, again)


def test_a_grid_comes_from_the_schema_alone_and_a_table_is_encoded_column_by_column() -> None:
    rules = {
        "age": column("integer", min=0, max=3),
        "ward": column("categorical", categories=["north", "south"]),
        "dose": column("continuous", min=0, max=4, cells=4, missing=True),
    }
    table = parse_table(
        pd.DataFrame({"dose": ["0.5", "", "4"], "ward": ["south", "north", "south"], "age": ["3", "0", "1"]}), rules
    )
    assert encode_table(table[["ward", "dose", "age"]], make_grids(rules)).tolist() == [[3, 1, 0], [0, 0, 4], [1, 1, 3]]
