"""Synthetic tables as files, written some rows at a time: CSV or Parquet, by the name's ending.

CSV: UTF-8, quoted as RFC 4180 says, missing is an empty cell, a moment is ISO 8601. A text that a spreadsheet would run
as a formula gets an apostrophe before it; a number does not. A table is read back by the same schema as it was.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from common.data.schema import Column, DatetimeColumn, defused
from common.data.windows import write_stamps
from common.errors import OutputError

ENDINGS: Final = (".csv", ".parquet")


class TableFile:
    """A table on its way to a file, which is there under its name once it is whole.

    Use it as a context manager: where the block fails, nothing is left.

    Args:
        path: ends in .csv or .parquet.
        columns: of the schema, which says how moments are written; the table may have others, and lack some.

    Raises:
        OutputError: it ends otherwise, or cannot be written.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        if path.suffix not in ENDINGS:
            raise OutputError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}")
        self._path, self._columns = path, columns
        self._temporary = path.with_name(path.name + ".part")
        self._parquet: pq.ParquetWriter | None = None
        self._is_new = True

    def __enter__(self) -> Self:
        """Make the folder."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the file under its name, or take away what there is of it."""
        if self._parquet is not None:
            self._parquet.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
        elif not self._is_new:
            self._temporary.replace(self._path)

    def write(self, table: pd.DataFrame) -> None:
        """Add rows; of the same columns and dtypes each time.

        Raises:
            OutputError: the disk refuses.
        """
        try:
            if self._path.suffix == ".csv":
                mode = "w" if self._is_new else "a"
                text = as_csv(table, self._columns, header=self._is_new)
                with self._temporary.open(mode, encoding="utf-8", newline="") as file:
                    file.write(text)
            else:
                rows = pa.Table.from_pandas(table, preserve_index=False)
                self._parquet = self._parquet or pq.ParquetWriter(self._temporary, rows.schema)
                self._parquet.write_table(rows)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})") from None
        self._is_new = False


def as_csv(table: pd.DataFrame, columns: Mapping[str, Column], *, header: bool = True) -> str:
    """A table as the text of a CSV file.

    Args:
        table: typed.
        columns: as of `TableFile`.
        header: whether the names of the columns come first.
    """
    changed: dict[str, pd.Series] = {}
    for name in table.columns:
        values, column = table[name], columns.get(name)
        if isinstance(values.dtype, pd.CategoricalDtype):
            changed[name] = values.cat.rename_categories([defused(text) for text in values.cat.categories])
        elif isinstance(column, DatetimeColumn):
            changed[name] = column.write(values)
        elif pd.api.types.is_datetime64_dtype(values.dtype):
            changed[name] = write_stamps(values.to_numpy()).set_axis(values.index)
    return table.assign(**changed).to_csv(index=False, header=header, lineterminator="\n")
