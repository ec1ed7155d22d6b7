"""A source of tables that a test writes down."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import pandas as pd


def table(text: str) -> pd.DataFrame:
    """Cells between bars, the first line with the names, all text; an empty cell is missing."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return pd.DataFrame(lines[1:], columns=lines[0], dtype="str")


class Frames:
    """Entities in memory, read in chunks of so many rows."""

    def __init__(self, entities: Mapping[str, pd.DataFrame], *, rows: int = 1_000) -> None:
        self.entities = dict(entities)
        self._rows = rows

    def read(
        self, entity: str, columns: Sequence[str], *, within: Mapping[str, Collection[int | str]] | None = None
    ) -> Iterator[pd.DataFrame]:
        whole = self.entities[entity]
        for begin in range(0, len(whole), self._rows):
            chunk = whole.iloc[begin : begin + self._rows]
            for name, values in (within or {}).items():
                chunk = chunk[chunk[name].isin([str(value) for value in values])]
            yield chunk[list(columns)]

    def backwards(self) -> "Frames":
        return Frames({name: frame.iloc[::-1] for name, frame in self.entities.items()}, rows=2)
