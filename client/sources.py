"""Where a site's tables are: files or a database, as `source` in site.yaml says. Everything comes out as text.

The study's own parser checks every cell in text form, and stays the only check: a table says the same whether it is a
CSV file, a Parquet file or a table of a database.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, Self

import pandas as pd
from pydantic import BeforeValidator, Field, model_validator

from common.data.schema import Section, Text, Whole

_CHUNK: Final = 100_000
_CHUNK_CELLS: Final = 1_000_000
_SECRET: Final = ("url", "uri", "dsn", "user", "username", "password", "passwd", "pwd", "host", "port")


class Query(Section):
    """Rows of a database that a statement gives."""

    query: Text


def _table_or_query(value: Any) -> Any:
    if isinstance(value, str | Query) or (isinstance(value, dict) and set(value) == {"query"}):
        return value
    raise ValueError("expected the name of a table, or {query: SELECT ...}")


Entity = Text | Query
_Named = Annotated[Entity, BeforeValidator(_table_or_query)]
Within = Mapping[str, Collection[int | str]]
"""Values that a column may have; other rows are left out where they are, and never cross a connection."""


class Source(Protocol):
    """Tables as text, in pieces. It is open for as long as `open_source` is."""

    def columns(self, entity: Entity) -> list[str]:
        """Names of an entity's columns, in order.

        Raises:
            SchemaError, SourceError: it cannot be read.
        """
        ...

    def read(self, entity: Entity, columns: Sequence[str], *, within: Within | None = None) -> Iterator[pd.DataFrame]:
        """Rows of an entity in columns that it has: text, "" where there is none; at least one piece.

        Raises:
            SchemaError, SourceError: it cannot be read; a column's values have no text.
        """
        ...


class _Settings(Section):
    """What all have. preset: makes table and series out of many entities, and takes their places."""

    preset: Literal["mimic3", "omop54"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_secrets(cls, data: Any) -> Any:
        """Before all else, since another error might be of them."""
        for name, value in data.items() if isinstance(data, dict) else ():
            if name in _SECRET or (isinstance(value, str) and "://" in value):
                raise ValueError(
                    "no URL, user or password in this file; name where the URL is: `url_env` or `url_file`"
                )
        return data


class FileSettings(_Settings):
    """CSV files, plain or .gz, written as the study's section `table` says; or Parquet files."""

    type: Literal["csv", "parquet"]
    table: Path | None = None
    series: Path | None = None
    # For a preset: the folder with a file for each entity.
    folder: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.preset is None) != (self.folder is None) or (self.preset is None) != (self.table is not None):
            raise ValueError("expected `table`, or `folder` and `preset`")
        if self.series is not None and self.preset is not None:
            raise ValueError("series: a preset makes it; leave it out")
        return self


class _DatabaseSettings(_Settings):
    """A table or a query for each entity; the schema of tables whose names have none."""

    table: _Named | None = None
    series: _Named | None = None
    db_schema: Annotated[Text | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.preset is None) != (self.table is not None):
            raise ValueError("expected `table`, or `preset`")
        if self.series is not None and self.preset is not None:
            raise ValueError("series: a preset makes it; leave it out")
        return self


class EmbeddedSettings(_DatabaseSettings):
    """A database that is a file."""

    type: Literal["sqlite", "duckdb"]
    database: Path


class PostgresSettings(_DatabaseSettings):
    """A PostgreSQL server. Its URL holds a password, so it is not here but where this names it.

    timeout: seconds that one statement may take; rows come in pieces, each by a statement of its own.
    """

    type: Literal["postgresql"]
    url_env: Text | None = None
    url_file: Path | None = None
    timeout: Annotated[Whole, Field(ge=1, le=86_400)] = 600

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if (self.url_env is None) == (self.url_file is None):
            raise ValueError("expected `url_env` or `url_file`")
        if self.url_env is not None and not self.url_env.isidentifier():
            raise ValueError("url_env: expected the name of an environment variable, and not what is in it")
        return self


TYPES: Final[Mapping[str, type[Section]]] = {
    "csv": FileSettings,
    "parquet": FileSettings,
    "sqlite": EmbeddedSettings,
    "duckdb": EmbeddedSettings,
    "postgresql": PostgresSettings,
}
"""The section for each `type`."""
SourceSettings = Annotated[
    FileSettings | EmbeddedSettings | PostgresSettings,
    Field(discriminator="type"),
]


def rows_at_a_time(columns: int) -> int:
    """Rows of a piece: so many that a wide table takes no more memory than a narrow one."""
    return max(1, min(_CHUNK, _CHUNK_CELLS // max(1, columns)))
