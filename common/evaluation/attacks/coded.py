"""Real units as the integer codes that sites count: what an attack lays beside a generator or a release."""

from collections.abc import Sequence

import numpy as np

from common.data.encoding import encode_table, make_grids
from common.data.queries import Coded
from common.data.windows import WindowedTable, encode_windows
from common.study import STEPS, Study


def encode(table: WindowedTable, study: Study) -> Coded:
    """Rows in fine cells, of the study's measured columns and its channels."""
    records = table.records
    if STEPS in study.measured:
        records = records.assign(**{STEPS: table.lengths})
    cells = encode_table(records, make_grids(study.measured))
    labels = records[study.label.column].cat.codes.to_numpy().astype(np.int64)
    if study.windows is None:
        return Coded(labels, cells)
    return Coded(labels, cells, encode_windows(table.values, table.lengths, make_grids(study.channels)), table.lengths)


def join(coded: Coded, maps: Sequence[np.ndarray]) -> Coded:
    """Cells joined into bins; `maps` are from the cells of each column, then of each channel, to its bins."""
    columns = coded.records.shape[1]
    records = np.column_stack([bin_of[coded.records[:, at]] for at, bin_of in enumerate(maps[:columns])])
    if coded.windows is None:
        return Coded(coded.labels, records)
    windows = np.stack(
        [
            np.where(coded.windows[:, :, at] < 0, -1, bin_of[coded.windows[:, :, at]])
            for at, bin_of in enumerate(maps[columns:])
        ],
        axis=2,
    )
    return Coded(coded.labels, records, windows, coded.lengths)


def take(coded: Coded, rows: np.ndarray) -> Coded:
    """Some of the rows."""
    windows, lengths = (None if part is None else part[rows] for part in (coded.windows, coded.lengths))
    return Coded(coded.labels[rows], coded.records[rows], windows, lengths)
