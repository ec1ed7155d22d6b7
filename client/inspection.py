"""What in a site's tables breaks the rules of its study, counted: for the steward's own terminal, and nothing else.

These numbers come from real rows without noise. They are printed by `doctor` at the site; no message, log or file gets
them. Which value is allowed, the study's own parser says and nobody else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd

from client.policy import SiteSettings
from client.records import check_source, compare_columns, parse_text, read_records_text, read_windows
from common.data.schema import Column, parse_table
from common.data.windows import check_filled
from common.errors import ExitCode, SchemaError
from common.study import Study

_MOST_PROBES: Final = 300
"""Calls of the parser for one column: beyond so many, what is wrong is everywhere."""


@dataclass(frozen=True)
class Violations:
    """Of one column, how many cells break which rule; `is_all` where no more were looked for than were found."""

    column: str
    cells: Mapping[ExitCode, int]
    is_all: bool

    def __str__(self) -> str:
        """In words."""
        least = "" if self.is_all else "at least "
        return f"{self.column}: " + ", ".join(
            f"{least}{number:,} {code.name.lower().replace('_', ' ')}" for code, number in self.cells.items()
        )


class Inspection:
    """A site's tables as text, read once."""

    def __init__(self, settings: SiteSettings, study: Study) -> None:
        """Read nothing yet."""
        self._source, self._study = settings.source, study

    def check_source(self) -> None:
        """See that the tables can be read.

        Raises:
            SchemaError, SourceError: one cannot be.
        """
        check_source(self._source, self._study)

    def columns(self) -> list[str]:
        """What is wrong with the columns, in words: names of the study that are missing, places of unknown ones."""
        said = []
        tables = compare_columns(self._source, self._study)
        for table, (missing, unknown) in zip(("table", "series"), tables, strict=False):
            if missing:
                said.append(f"{table}: missing {', '.join(missing)}")
            if unknown:  # a file without a header line has cells where names should be
                said.append(f"{table}: not in the study: column {', '.join(map(str, unknown))}")
        return said

    @cached_property
    def _texts(self) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        return read_records_text(self._source, self._study)

    def violations(self) -> list[Violations]:
        """Cells that break a rule of their column, by column; the long table's channels last."""
        text, series = self._texts
        study, found = self._study, []
        key = study.unit.key
        if key is not None:
            absent = text[key].str.strip().isin({"", *study.table.missing_markers})
            if number := int(absent.sum()):
                found.append(Violations(key, {ExitCode.MISSING_NOT_ALLOWED: number}, is_all=True))
        tables: list[tuple[pd.DataFrame, Mapping[str, Column]]] = [(text, study.columns)]
        if series is not None and study.windows is not None:
            read = {name: rule for name, rule in study.windows.channels.items() if name != study.windows.gap}
            tables.append((series, read))
        for table, rules in tables:
            for name, rule in rules.items():
                own = _violations(table[name], rule, study.table.missing_markers)
                if own.cells:
                    found.append(own)
        return found

    def units_with_surplus(self) -> int:
        """Units that have more records than the study allows."""
        key = self._study.unit.key
        if key is None:
            return 0
        return int((self._texts[0][key].str.strip().value_counts() > self._study.unit.max_records).sum())

    def units(self) -> int:
        """Units in the table."""
        text, key = self._texts[0], self._study.unit.key
        return len(text) if key is None else int(text[key].str.strip().nunique())

    @cached_property
    def _windows(self) -> np.ndarray | None:
        text, series = self._texts
        return None if series is None else read_windows(parse_text(text, self._study), series, self._study)[0]

    def check_windows(self) -> None:
        """Make every unit's window.

        Raises:
            SchemaError: one cannot be made.
        """
        _ = self._windows

    def check_filled(self) -> None:
        """See that no part of the windows is empty in all of them.

        Raises:
            SchemaError: a channel has no value, or no unit reaches the last step.
        """
        if self._study.windows is not None and self._windows is not None:
            check_filled(self._windows, self._study.windows)


def _violations(text: pd.Series, rule: Column, markers: tuple[str, ...]) -> Violations:
    """Halve the distinct values until the parser refuses one alone: most tables are right, and asked about once."""
    name = str(text.name)
    counts = text.str.strip().value_counts()
    found: dict[ExitCode, int] = {}
    probes, waiting = 0, [counts]
    while waiting and probes < _MOST_PROBES:
        values = waiting.pop()
        probes += 1
        try:
            parse_table(pd.DataFrame({name: pd.Series(values.index, dtype=str)}), {name: rule}, missing_markers=markers)
        except SchemaError as error:
            if len(values) == 1:
                found[error.code] = found.get(error.code, 0) + int(values.iloc[0])
            else:
                middle = len(values) // 2
                waiting += [values.iloc[middle:], values.iloc[:middle]]
    return Violations(name, found, is_all=not waiting)
