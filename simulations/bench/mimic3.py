"""Whether the preset mimic3 copes with the whole of MIMIC-III: `python simulations/bench/mimic3.py make`, then `read`.

The whole database needs credentials, so its size is made up from the open demo: `make` writes the demo's people over
and over under new numbers, in the official layout, until there are so many stays. `read` runs the preset on the folder
and tells time and the process's largest memory. Of chartevents it writes the rows of items that the preset reads and a
share of the others; what a share of 1 would take is told apart, as an extrapolation by rows.
"""

import gzip
import resource
import shutil
import time
from pathlib import Path
from typing import Annotated, Final

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import typer
from rich.console import Console
from rich.table import Table

from client.opening import open_source
from client.presets.mimic3 import BEDSIDE, read_mimic3
from client.sources import FileSettings
from common.commands import Commands
from common.data.schema import FileLayout

OFFICIAL: Final = {"chartevents": 330_712_483, "labevents": 27_854_055, "outputevents": 4_349_218}
"""Rows of MIMIC-III v1.4, from the database's page on PhysioNet."""

_ENTITIES: Final = ("patients", "admissions", "icustays", "diagnoses_icd", "chartevents", "labevents", "outputevents")
_NUMBERS: Final = {"subject_id": 100_000, "hadm_id": 1_000_000, "icustay_id": 1_000_000}
"""Larger than any number of the demo; a copy's numbers are so much apart."""

app = Commands()


@app.command()
def make(
    *,
    demo: Annotated[Path, typer.Option(help="Folder of the MIMIC-III Clinical Database Demo v1.4.")],
    out: Annotated[Path, typer.Option(help="Folder that the copies are written to; it must not be there.")],
    stays: Annotated[int, typer.Option(min=1, help="Stays in intensive care, in whole copies of the demo.")] = 53_000,
    others: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the rows of chartevents that the preset does not read.")
    ] = 0.1,
) -> None:
    """Write copies of the demo under new numbers."""
    out.mkdir(parents=True)
    tables = {name: _demo_table(demo, name) for name in _ENTITIES}
    tables["chartevents"] = _thinned(tables["chartevents"], others)
    copies = -(-stays // len(tables["icustays"]))
    for name, table in tables.items():
        _write_copies(table, out / f"{name.upper()}.csv.gz", copies)
        typer.echo(f"{name}: {copies * len(table):,} rows", err=True)
    free = shutil.disk_usage(out).free / 2**30
    size = sum(path.stat().st_size for path in out.iterdir()) / 2**30
    typer.echo(f"{copies} copies, {copies * len(tables['icustays']):,} stays, {size:.2f} GiB; {free:.0f} GiB are left")


@app.command()
def read(
    folder: Annotated[Path, typer.Argument(help="Folder in the official layout; the whole database will do.")],
    *,
    hours: Annotated[int, typer.Option(help="Of the series.")] = 24,
) -> None:
    """Run the preset once, and tell time and memory."""
    before = _peak()
    started = time.perf_counter()
    with open_source(FileSettings(type="csv", folder=folder, preset="mimic3"), FileLayout()) as source:
        records, series = read_mimic3(source, hours=hours)
    seconds = time.perf_counter() - started
    table = Table("what", "figure")
    table.add_row("subjects, and their hours with a value", f"{len(records):,}, {len(series):,}")
    table.add_row("time", f"{seconds:.0f} s")
    table.add_row("largest memory of the process", f"{_peak():.2f} GiB ({before:.2f} before)")
    Console().print(table)


def _demo_table(folder: Path, name: str) -> pd.DataFrame:
    found = [path for path in folder.iterdir() if path.name.lower() in (f"{name}.csv", f"{name}.csv.gz")]
    if not found:
        raise typer.BadParameter(f"{folder}: no {name}.csv and no {name}.csv.gz")
    return pd.read_csv(found[0], dtype="str", keep_default_na=False)


def _thinned(events: pd.DataFrame, others: float) -> pd.DataFrame:
    """All rows of items that the preset reads, and every so manyth of the others."""
    needed = events["itemid"].isin(list(BEDSIDE))
    number = (~needed).cumsum()
    kept = (number * others).astype("int64") > ((number - 1) * others).astype("int64")
    return events[needed | kept]


def _write_copies(table: pd.DataFrame, path: Path, copies: int) -> None:
    numbers = {
        name: (pd.to_numeric(table[name]), table[name] == "", apart)
        for name, apart in _NUMBERS.items()
        if name in table.columns
    }
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write((",".join(name.upper() for name in table.columns) + "\n").encode())
        for copy in range(copies):
            for name, (number, absent, apart) in numbers.items():
                changed = (number.fillna(0).astype("int64") + copy * apart).astype("str").mask(absent, "")
                place = arrow.schema.get_field_index(name)
                arrow = arrow.set_column(place, name, pa.array(changed.to_numpy(dtype=object), pa.string()))
            pa_csv.write_csv(arrow, file, options)


def _peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    app()
