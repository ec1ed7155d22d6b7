"""What a preset makes of a database, as files that `simulations/run.py` reads.

    python simulations/converters/preset.py --source source.yaml --study simulations/studies/mimic3.yaml --out FOLDER

`source.yaml` has the section `source` of a site file, with a preset, as in docs/mimic.md. `table.csv` has a row a unit,
`series.csv`, for a study with windows, a row for each hour of a unit in which a channel has a value. A site needs none
of this: it reads its source itself.
"""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from client.opening import open_source
from client.policy import read_source_settings
from client.presets.tables import read_preset
from client.records import parse_text, read_windows
from client.sources import SourceSettings
from common.commands import Commands, fail, say_aside
from common.errors import OutputError, PrivShareError, StudyError
from common.study import load_study
from server.checkpoints import write_file

app = Commands()


@app.command()
def main(
    *,
    source: Annotated[Path, typer.Option(help="File with the section `source` of a site file, with a preset.")],
    study: Annotated[Path, typer.Option(help="The study file, which says what columns, channels and hours it takes.")],
    out: Annotated[Path, typer.Option(help="Folder that table.csv and series.csv are written to.")],
) -> None:
    """Make a study's tables from a clinical database of a known layout, and check them."""
    try:
        counts = convert(source, study, out)
    except PrivShareError as error:
        fail(error)
    done = f"wrote {counts[0]} units and {counts[1]} rows of their series to {out}"
    say_aside(done)


def convert(source: Path, study: Path, out: Path) -> tuple[int, int]:
    """Write the tables, and return how many rows each has.

    Raises:
        StudyError: the source has no preset, or a file says what it may not.
        SchemaError, SourceError: the database lacks something, or breaks a rule of the study.
        OutputError: a file is there already, or cannot be written.
    """
    settings = TypeAdapter[SourceSettings](SourceSettings).validate_python(read_source_settings(source))
    agreed = load_study(study)
    if settings.preset is None:
        raise StudyError(f"{source}: source.preset: expected mimic3 or omop54; other tables need no conversion")
    files = (out / "table.csv", out / "series.csv")
    for path in files:
        if path.exists():
            raise OutputError(f"{path}: exists already; choose another --out")
    with open_source(settings, agreed.table) as opened:
        table, series = read_preset(settings.preset, opened, agreed)
    parsed = parse_text(table, agreed)
    if series is not None:
        read_windows(parsed, series, agreed)
    for path, frame in zip(files, (table, series), strict=True):
        if frame is not None:
            write_file(path, frame.to_csv(index=False, lineterminator="\n", sep=agreed.table.delimiter).encode())
    return len(table), 0 if series is None else len(series)


if __name__ == "__main__":
    app()
