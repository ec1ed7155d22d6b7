"""Synthetic tables as files, written some rows at a time: CSV or Parquet, by the name's ending.

CSV: UTF-8, quoted as RFC 4180 says, missing is an empty cell. A text that a spreadsheet would run as a formula gets an
apostrophe before it; a number does not.
"""

import re
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import OutputError

ENDINGS: Final = (".csv", ".parquet")
_FORMULA: Final = re.compile(r"^[=+\-@\t\r]")
_NUMBER: Final = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


class TableFile:
    """A table on its way to a file, which is there under its name once it is whole.

    Use it as a context manager: where the block fails, nothing is left.

    Args:
        path: ends in .csv or .parquet.

    Raises:
        OutputError: it ends otherwise, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in ENDINGS:
            raise OutputError(f"{path}: expected a name that ends in {' or '.join(ENDINGS)}")
        self._path = path
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
                text = _without_formulas(table).to_csv(index=False, header=self._is_new, lineterminator="\n")
                with self._temporary.open(mode, encoding="utf-8", newline="") as file:
                    file.write(text)
            else:
                rows = pa.Table.from_pandas(table, preserve_index=False)
                self._parquet = self._parquet or pq.ParquetWriter(self._temporary, rows.schema)
                self._parquet.write_table(rows)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})") from None
        self._is_new = False


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    changed = {
        name: table[name].cat.rename_categories(_defused(list(table[name].cat.categories)))
        for name in table.columns
        if isinstance(table[name].dtype, pd.CategoricalDtype)
    }
    return table.assign(**changed)


def _defused(texts: list[str]) -> list[str]:
    return [f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text for text in texts]
