"""What a data consumer should know of a release: a card to read, and Croissant metadata for catalogues.

Both are made from what is released alone: the study, the bins that noise left, the gates whose figures are public.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import jinja2
import numpy as np

from common.data.binning import Binning
from common.data.encoding import Grid
from common.data.schema import CategoricalColumn, Column, ContinuousColumn, DatetimeColumn
from common.synthesis.release import Release

CARD: Final = "card.md"
CROISSANT: Final = "croissant.json"
_FEW: Final = 4
"""A numeric column with fewer bins than this shows little but a level."""
_SHOWN: Final = 12
"""Names in one list of the card at most."""


@dataclass(frozen=True)
class CardColumn:
    """A column as the card shows it.

    kind: type and public bounds or categories. bins: how many values the generator tells apart; None of a sum.
    weak: why analyses of it say little; empty where nothing is known.
    """

    name: str
    kind: str
    bins: int | None
    weak: str


def make_card(release: Release, *, rows: int, gates: Sequence[Mapping[str, Any]] = ()) -> str:
    """The card as Markdown.

    Args:
        release: that it is of.
        rows: of the table that is published with it.
        gates: that were passed, with figures that may be public.
    """
    study = release.study
    source = files("common.synthesis").joinpath("templates", "card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(  # noqa: S701 (Markdown: names are escaped by `code`)
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["code"] = as_code
    return environment.from_string(source).render(
        study=study,
        rows=rows,
        units=round(release.units),
        columns=list(card_columns(release)),
        constraints=[one.text for one in study.constraints],
        gates=[gate for gate in gates if gate.get("value") is not None],
        shares=dict(zip(study.label_values, release.label_counts / release.label_counts.sum(), strict=True)),
        windows=study.windows,
    )


def card_columns(release: Release) -> Iterator[CardColumn]:
    """Columns of the records, then channels."""
    study = release.study
    binnings = {grid.name: (grid, binning) for grid, binning in zip(release.grids, release.binnings, strict=True)}
    for name, column in (study.columns | study.channels).items():
        known = binnings.get(name)
        bins = len(study.label_values) if name == study.label.column else known and known[1].n_bins
        yield CardColumn(name, _kind(column), bins, "" if known is None else _weakness(*known))


def _weakness(grid: Grid, binning: Binning) -> str:
    """What noise left too little of; from released tables alone."""
    if isinstance(grid.column, CategoricalColumn):
        counts = np.bincount(binning.bin_of)
        joined = [grid.column.values[cell] for cell in np.flatnonzero(counts[binning.bin_of[: grid.n_values]] > 1)]
        if not joined:
            return ""
        more = f" and {len(joined) - _SHOWN} more" if len(joined) > _SHOWN else ""
        return f"too rare for the noise to be told apart: {', '.join(joined[:_SHOWN])}{more}"
    values = binning.n_bins - int(grid.column.missing)
    return f"only {values} levels are told apart" if values < _FEW else ""


def _kind(column: Column) -> str:
    missing = ", may be missing" if column.missing else ""
    if isinstance(column, CategoricalColumn):
        return f"{len(column.values)} categories{missing}"
    if isinstance(column, DatetimeColumn):
        zone = f" in {column.timezone}" if column.timezone else ""
        return f"a {column.unit}{zone}, {column.first} to {column.last}{missing}"
    what = "number" if isinstance(column, ContinuousColumn) else "whole number"
    return f"{what}, {column.min} to {column.max}{missing}"


def as_code(text: object) -> str:
    """A name from a study as code in Markdown, whatever is in it."""
    plain = " ".join(str(text).split()).replace("|", "\\|")
    fence = "``" if "`" in plain else "`"
    return f"{fence}{plain}{fence}" if fence == "`" else f"{fence} {plain} {fence}"


# --- Croissant


def make_croissant(release: Release, tables: Mapping[str, bytes]) -> dict[str, Any]:
    """Metadata of the published tables in Croissant 1.0, ready for JSON.

    Args:
        release: that they were drawn from.
        tables: content by file name; CSV.
    """
    study = release.study
    schema = study.columns | study.channels
    # The only other columns are the unit's key, a text, and the time.
    kinds = {name: _data_type(column) for name, column in schema.items()}
    if study.windows is not None:
        time = study.windows.time
        kinds[time.column] = "sc:Float" if time.type == "number" else "sc:DateTime"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": study.name,
        "description": (
            f"Synthetic rows under differential privacy: epsilon at most {study.privacy.epsilon:g}, delta "
            f"{study.privacy.delta:g}, for each {study.unit.name} present at one site. {study.purpose}".strip()
        ),
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": "text/csv",
                "sha256": hashlib.sha256(body).hexdigest(),
            }
            for name, body in tables.items()
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": name.removesuffix(".csv"),
                "name": name.removesuffix(".csv"),
                "field": [_field(name, column, kinds.get(column, "sc:Text")) for column in _header(body)],
            }
            for name, body in tables.items()
        ],
    }


def _header(body: bytes) -> list[str]:
    """Names of the columns of a CSV file."""
    return next(csv.reader(io.StringIO(body.decode())))


def _field(table: str, column: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{table.removesuffix('.csv')}/{column}",
        "name": column,
        "dataType": kind,
        "source": {"fileObject": {"@id": table}, "extract": {"column": column}},
    }


def _data_type(column: Column) -> str:
    if isinstance(column, ContinuousColumn):
        return "sc:Float"
    if isinstance(column, DatetimeColumn):
        return "sc:Date" if column.unit == "day" and column.timezone is None else "sc:DateTime"
    return "sc:Text" if isinstance(column, CategoricalColumn) else "sc:Integer"


def as_json(metadata: Mapping[str, Any]) -> bytes:
    """As it is written to a file."""
    return (json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that Croissant 1.0 prescribes."""
