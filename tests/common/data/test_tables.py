"""Where a record counts: the flat vector against a loop over records, tables and cells."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.tables import TableLayout, all_pairs, cell_indices, one_way


@st.composite
def tables(draw: st.DrawFn) -> tuple[TableLayout, np.ndarray, np.ndarray]:
    """A layout of one-way, pair or any other tables, with codes and labels of some records."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    classes = draw(st.integers(1, 3))
    crossed = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=3, unique=True).map(tuple)
    layout = draw(
        st.sampled_from([one_way(sizes, classes), all_pairs(sizes, classes)])
        | st.lists(crossed, max_size=4).map(lambda chosen: TableLayout(tuple(chosen), tuple(sizes), classes))
    )
    seed, records = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 12))
    random = np.random.default_rng(seed)
    codes = np.column_stack([random.integers(0, size, records) for size in sizes])
    return layout, codes, random.integers(0, classes, records)


def counted_slowly(layout: TableLayout, codes: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Every table, one record at a time."""
    found = []
    for columns in layout.columns:
        table = np.zeros((layout.classes, *(layout.sizes[column] for column in columns)))
        for record in range(len(labels)):
            table[(labels[record], *(codes[record, column] for column in columns))] += 1
        found.append(table)
    return found


@given(tables())
@settings(deadline=None, max_examples=200)
def test_a_record_adds_one_to_its_cell_of_each_table(case: tuple[TableLayout, np.ndarray, np.ndarray]) -> None:
    layout, codes, labels = case
    indices = cell_indices(codes, labels, layout)
    assert indices.dtype == np.int64
    assert indices.shape == (len(labels), layout.n_tables)
    vector = np.bincount(indices.ravel(), minlength=layout.n_cells)
    assert len(vector) == layout.n_cells
    for table, slow in zip(layout.split(vector), counted_slowly(layout, codes, labels), strict=True):
        assert np.array_equal(table, slow)


@given(tables())
@settings(deadline=None, max_examples=100)
def test_shapes_offsets_and_the_parts_of_a_vector_agree(case: tuple[TableLayout, np.ndarray, np.ndarray]) -> None:
    layout, codes, labels = case
    assert layout.offsets.dtype == np.int64
    assert len(layout.offsets) == layout.n_tables + 1 == len(layout.shapes) + 1
    assert layout.offsets[0] == 0
    vector = np.arange(layout.n_cells)
    parts = list(layout.split(vector))
    assert [part.shape for part in parts] == list(layout.shapes)
    assert [int(part.size) for part in parts] == np.diff(layout.offsets).tolist()
    assert np.array_equal(np.concatenate([part.ravel() for part in [*parts, np.empty(0, int)]]), vector)
    indices = cell_indices(codes, labels, layout)
    assert ((indices >= layout.offsets[:-1]) & (indices < layout.offsets[1:])).all()


@pytest.mark.parametrize("columns", [0, 1, 2, 5])
def test_there_is_one_table_a_column_or_one_a_pair(columns: int) -> None:
    sizes = list(range(2, 2 + columns))
    assert one_way(sizes, 2).columns == tuple((column,) for column in range(columns))
    assert all_pairs(sizes, 2).columns == tuple(itertools.combinations(range(columns), 2))
    assert one_way(sizes, 3).n_cells == 3 * sum(sizes)
    assert all_pairs(sizes, 3).n_cells == 3 * sum(a * b for a, b in itertools.combinations(sizes, 2))


@pytest.mark.parametrize(("codes", "labels"), [([[2]], [0]), ([[-1]], [0]), ([[0]], [2]), ([[0]], [-1])])
def test_a_code_outside_its_table_is_never_counted_elsewhere(codes: list[list[int]], labels: list[int]) -> None:
    with pytest.raises(ValueError, match="invalid entry"):
        cell_indices(np.array(codes), np.array(labels), one_way([2], 2))
