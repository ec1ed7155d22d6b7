"""Opens the source that a site file names: the one place that knows every kind of source."""

from collections.abc import Iterator
from contextlib import contextmanager

from client.sources import FileSettings, PostgresSettings, Source, SourceSettings
from common.data.schema import FileLayout


@contextmanager
def open_source(settings: SourceSettings, layout: FileLayout) -> Iterator[Source]:
    """Open what a site file names, for reading alone; what a database shows is of one moment.

    Args:
        settings: of the site file.
        layout: how the study says that text files are written; those of a preset are plain CSV.

    Raises:
        SourceError: it cannot be reached, or does not let this user in.
    """
    # Each kind when it is used: a driver takes a moment, and one that is not used need not be there.
    if isinstance(settings, FileSettings) and settings.folder is not None and settings.type == "csv":
        from client.folders import CsvFolder  # noqa: PLC0415

        yield CsvFolder(settings.folder)
    elif isinstance(settings, FileSettings):
        from client.files import Files  # noqa: PLC0415

        yield Files(settings, FileLayout() if settings.preset else layout)
    elif isinstance(settings, PostgresSettings):
        from client.postgresql import open_postgresql  # noqa: PLC0415

        with open_postgresql(settings) as source:
            yield source
    else:
        from client.embedded import open_duckdb, open_sqlite  # noqa: PLC0415

        with (open_duckdb if settings.type == "duckdb" else open_sqlite)(settings) as source:
            yield source
