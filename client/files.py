"""Tables that are files, each of its own: delimited text, plain or .gz, and Parquet."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from client.cells import empty_batch, frame_of_arrow
from client.delimited import Stamp, read_chunks
from client.sources import Entity, FileSettings, Within, rows_at_a_time
from common.data.schema import FileLayout
from common.errors import ExitCode, SchemaError


class Files:
    """A file for each entity: by its path or, for Parquet in a preset's folder, by its name in upper or lower case.

    In a preset's folder columns are named in lower case, whatever the files say.
    """

    def __init__(self, settings: FileSettings, layout: FileLayout) -> None:
        self._folder, self._type = settings.folder, settings.type
        # Names that the study gives are those of the first table.
        self._layouts = {settings.table: layout}
        self._layout = layout.model_copy(update={"header": None})
        self._checked: set[Stamp] = set()

    def columns(self, entity: Entity) -> list[str]:
        """As `Source`."""
        return [self._name(name) for name in self._own_names(self._path(entity))]

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """As `Source`."""
        path, allowed = self._path(entity), {name: set(map(str, values)) for name, values in (within or {}).items()}
        needed = list(dict.fromkeys([*columns, *allowed]))
        own = {self._name(name): name for name in self._own_names(path)}
        for name in needed:
            if name not in own:
                raise SchemaError(f"{path}: {name}: there is no such column", ExitCode.COLUMN_MISSING)
        with closing(self._pieces(path, [own[name] for name in needed])) as pieces:
            for piece in pieces:
                piece.columns = pd.Index(needed)
                for name, values in allowed.items():
                    piece = piece[piece[name].isin(values)]  # noqa: PLW2901
                yield piece[list(columns)].reset_index(drop=True)

    def _own_names(self, path: Path) -> list[str]:
        if self._type == "parquet":
            with _opened(path) as file:
                return list(file.schema_arrow.names)
        with closing(self._delimited(path, rows=1)) as pieces:
            return list(next(pieces).columns)

    def _pieces(self, path: Path, names: list[str]) -> Generator[pd.DataFrame, None, None]:
        rows = rows_at_a_time(len(names))
        if self._type == "parquet":
            yield from _parquet(path, names, rows=rows)
            return
        with closing(self._delimited(path, rows=rows)) as pieces:
            for piece in pieces:
                yield piece[names]

    def _delimited(self, path: Path, *, rows: int) -> Generator[pd.DataFrame, None, None]:
        layout = self._layouts.get(path, self._layout)
        return read_chunks(path, layout, rows=rows, checked=self._checked)

    def _name(self, own: str) -> str:
        return own if self._folder is None else own.lower()

    def _path(self, entity: Entity) -> Path:
        assert isinstance(entity, str)
        if self._folder is None:
            return Path(entity)
        for name in (entity.lower(), entity.upper()):
            if (found := self._folder / f"{name}.parquet").is_file():
                return found
        raise SchemaError(f"{self._folder / entity.lower()}.parquet: no such table", ExitCode.TABLE_NOT_FOUND)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise SchemaError(f"{path}: no such table", ExitCode.TABLE_NOT_FOUND)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SchemaError(f"{path}: not a Parquet file ({type(error).__name__})", ExitCode.TABLE_UNREADABLE) from None


def _parquet(path: Path, names: list[str], *, rows: int) -> Iterator[pd.DataFrame]:
    with _opened(path) as file:
        schema = file.schema_arrow
        yield frame_of_arrow(empty_batch(pa.schema([schema.field(name) for name in names])), names)
        for batch in file.iter_batches(rows, columns=names):
            yield frame_of_arrow(batch.select(names), names)
