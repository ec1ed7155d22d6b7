"""Statements that read a table or a query, in the SQL that all databases of a site have in common."""

from collections.abc import Sequence

from client.sources import Entity, Query, Within


def named(entity: Entity) -> str:
    """An entity in an error; a query is its steward's own business."""
    return "query" if isinstance(entity, Query) else entity


def quoted(name: str) -> str:
    r"""A name that is taken as it is written.

    >>> print(quoted('bed "2" left'))
    "bed ""2"" left"
    """
    return '"' + name.replace('"', '""') + '"'


def full_name(table: str, schema: str | None) -> str:
    """The quoted name of a table, with its own schema where it names one.

    >>> full_name("patients", None), full_name("ward.patients", "public")
    ('"patients"', '"ward"."patients"')
    """
    own, _, name = table.rpartition(".")
    return ".".join(quoted(part) for part in (own or schema, name) if part)


def select(
    entity: Entity, columns: Sequence[str] | None, *, schema: str | None, within: Within | None = None, member: str
) -> tuple[str, list[list[int | str]]]:
    """A statement and its parameters.

    Args:
        entity: a table, or a query, of which the last semicolon is left out.
        columns: to ask for; None for all of them.
        schema: of a table that names none.
        within: the values that a column may have, each column's in one parameter, as a list.
        member: that a value is in such a list, as this database says it.
    """
    # A query may end in a comment, up to its line's end.
    body = f"(\n{entity.query.strip().rstrip(';')}\n)" if isinstance(entity, Query) else full_name(entity, schema)
    # With the table's name before it: SQLite takes a lone "name" that no column has for a text.
    wanted = "*" if columns is None else ", ".join(f"asked.{quoted(name)}" for name in columns)
    tests = " AND ".join(f"asked.{quoted(name)} {member}" for name in within or {})
    statement = f"SELECT {wanted} FROM {body} AS asked" + (f" WHERE {tests}" if tests else "")  # noqa: S608 (quoted)
    return statement, [list(values) for values in (within or {}).values()]
