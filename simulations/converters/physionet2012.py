"""The PhysioNet/CinC Challenge 2012 as the two tables of `simulations/studies/physionet2012.yaml`.

    python simulations/converters/physionet2012.py --records set-a --outcomes Outcomes-a.txt --out FOLDER

Records are read as they are distributed, a folder of files RecordID.txt with lines `Time,Parameter,Value`, or in long
form from one Parquet file with the columns RecordID, minute, Parameter and Value, which needs pyarrow. `stays.csv` has
a row a stay, `series.csv` a row for each minute of a stay in which a channel has a value.

Every rule is public, and none is learned from the rows: a value outside its range in `MEASURES` is an error of
measurement (a temperature of 0, the -1 that stands for missing) and becomes empty. It is not repaired, though some are
plainly Fahrenheit. Of the outcome files the death in hospital alone is read: scores, length of stay and survival hold
the outcome, or come after it.

Source: Silva et al. 2012, Computing in Cardiology 39, 245-248, and the challenge's page (parameters, units, codes).
"""

import csv
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import pandas as pd
import typer

from common.commands import Commands, fail, say_aside
from common.errors import ExitCode, OutputError, PrivShareError, SchemaError
from server.checkpoints import write_file


@dataclass(frozen=True)
class Measure:
    """A number in the tables.

    parameters: that it is read from; where several have a plausible value in one minute, the first.
    minimum, maximum: what can be read of a living adult, both included, in the challenge's unit.
    decimals: that it is written with.
    """

    parameters: tuple[str, ...]
    minimum: float
    maximum: float
    decimals: int = 0


# Wide on purpose: beyond these an instrument or a hand was wrong. The study states the same ranges.
MEASURES: Final[Mapping[str, Measure]] = {
    "Age": Measure(("Age",), 15, 90),  # years; adults, and 90 stands for all above 89
    "Height": Measure(("Height",), 100, 230),  # cm
    "Weight": Measure(("Weight",), 25, 350, 1),  # kg
    "BUN": Measure(("BUN",), 1, 250),  # mg/dl, urea nitrogen
    "Creatinine": Measure(("Creatinine",), 0.1, 30, 1),  # mg/dl; kidneys that fail untreated lead to 20 and more
    "Lactate": Measure(("Lactate",), 0.2, 30, 1),  # mmol/l; what blood gas analysers can measure
    "HCO3": Measure(("HCO3",), 3, 60),  # mmol/l
    "WBC": Measure(("WBC",), 0.1, 500, 1),  # thousands/µl; the upper end is leukaemia
    "Platelets": Measure(("Platelets",), 1, 2000),  # thousands/µl
    "HR": Measure(("HR",), 20, 250),  # beats/min; a ventricle hardly follows faster
    "SysBP": Measure(("SysABP", "NISysABP"), 30, 300),  # mmHg; an open or a flushed line reads 0 or more than 300
    "MeanBP": Measure(("MAP", "NIMAP"), 20, 220),  # mmHg
    "Temp": Measure(("Temp",), 25, 44, 1),  # °C; severe hypothermia to lethal fever
    "GCS": Measure(("GCS",), 3, 15),  # points; the ends of the scale
    "Urine": Measure(("Urine",), 0, 2000),  # ml a reading; more is a sum over many hours, as after an operation
    "FiO2": Measure(("FiO2",), 0.21, 1, 2),  # share of oxygen; room air to pure oxygen
}
"""Every number in the tables, with the range outside which it becomes empty."""

LABORATORY: Final = ("BUN", "Creatinine", "Lactate", "HCO3", "WBC", "Platelets")
STAYS: Final = ("ICUType", "Age", "Gender", "Height", "Weight", "MechVent", *LABORATORY, "died")
"""Columns of the stays after RecordID, in order."""

CHANNELS: Final = ("HR", "SysBP", "MeanBP", "Temp", "GCS", "Urine", "FiO2")
"""Columns of the series after RecordID and minute, in order."""

ICU_TYPES: Final = {1: "coronary", 2: "cardiac_surgery", 3: "medical", 4: "surgical"}
GENDERS: Final = {0: "female", 1: "male"}
DEATHS: Final = {"0": "no", "1": "yes"}

FIRST_DAY: Final = 24 * 60
"""Minutes from which the values of a stay's own columns are taken."""

_DEATH: Final = "In-hospital_death"
_LONG: Final = ("RecordID", "minute", "Parameter", "Value")
_FIRST_LINE: Final = "Time,Parameter,Value"
_LINE: Final = re.compile(r"(\d{2,3}):([0-5]\d),(\w*),([-+]?(?:\d+\.?\d*|\.\d+))", re.ASCII)
_RECORD_FILE: Final = re.compile(r"\d{1,9}\.txt", re.ASCII)
_RECORD: Final = re.compile(r"\d{1,9}", re.ASCII)
_LATEST: Final = 1000 * 60
# The page calls the troponins TropI and TropT; its files do not.
_PARAMETERS: Final = (
    *("RecordID", "Age", "Gender", "Height", "ICUType", "Weight"),
    *("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP", "FiO2", "GCS"),
    *("Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg", "NIDiasABP", "NIMAP", "NISysABP"),
    *("Na", "PaCO2", "PaO2", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TropI", "TropT", "TroponinI"),
    *("TroponinT", "Urine", "WBC", "pH"),
)
_CODES: Final = {"": -1} | {name: code for code, name in enumerate(_PARAMETERS)}

app = Commands()


@app.command()
def main(
    *,
    records: Annotated[
        list[Path], typer.Option(help="Folder of files RecordID.txt, or a Parquet file; repeat it to join sets.")
    ],
    outcomes: Annotated[list[Path], typer.Option(help="Outcomes-a.txt or its like; repeat it to join sets.")],
    out: Annotated[Path, typer.Option(help="Folder that stays.csv and series.csv are written to.")],
) -> None:
    """Make the tables of the study physionet2012 from the PhysioNet/CinC Challenge 2012."""
    files = (out / "stays.csv", out / "series.csv")
    try:
        for path in files:
            if path.exists():
                raise OutputError(f"{path}: exists already; choose another --out")
        tables = convert(records, outcomes)
        for path, table in zip(files, tables, strict=True):
            write_file(path, table.to_csv(index=False, lineterminator="\n").encode())
    except PrivShareError as error:
        fail(error)
    done = f"wrote {len(tables[0])} stays and {len(tables[1])} rows of their series to {out}"
    say_aside(done)


def convert(records: Sequence[Path], outcomes: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of stays and that of their series, every cell text, empty where there is no plausible value.

    Guarantees: the same records give the same tables in either form; what is written of a stay depends on its own lines
    alone.
    Edge cases: several plausible values of a parameter in one minute -> the last; a line without the name of a
    parameter, as set c has -> skipped; a stay without a value of any channel -> no row in the series.

    Args:
        records: folders and Parquet files, at least one.
        outcomes: comma-separated files with the columns RecordID and In-hospital_death, at least one.

    Returns:
        stays: by RecordID; `died` in hospital, `MechVent` whether ventilation was noted in the first 24 hours, and of
            the other columns the first plausible value in them.
        series: by RecordID and minute since admission to the unit.

    Raises:
        SchemaError: a file is absent or not of its form, or records and outcomes are not of the same stays.
    """
    long = pd.concat([_read_records(path) for path in records], ignore_index=True)
    _check_own_numbers(long)
    stays = pd.Index(np.unique(long["RecordID"]), name="RecordID")
    died = pd.concat([_read_outcomes(path) for path in outcomes])
    _check_same(stays, died.index)
    readings = {name: _readings(long, measure) for name, measure in MEASURES.items()}
    columns = {name: _written(_first(readings[name]), measure) for name, measure in MEASURES.items()}
    columns |= {
        "ICUType": _named(long, "ICUType", ICU_TYPES),
        "Gender": _named(long, "Gender", GENDERS),
        # Noted while it lasts: a day without a note is one without ventilation.
        "MechVent": _named(long, "MechVent", {1: "yes"}).reindex(stays, fill_value="no"),
        "died": died,
    }
    if len(columns["ICUType"]) < len(stays):
        raise SchemaError("ICUType: a record has none of the types 1 to 4", ExitCode.UNLISTED_CATEGORY)
    table = pd.DataFrame({name: columns[name].reindex(stays, fill_value="") for name in STAYS})
    moments = pd.concat([readings[name].rename(name) for name in CHANNELS], axis=1).sort_index()
    series = pd.DataFrame({name: _written(moments[name], MEASURES[name]) for name in CHANNELS})
    return table.reset_index().astype("str"), series.reset_index().astype("str")


def _readings(long: pd.DataFrame, measure: Measure) -> pd.Series:
    """Plausible values of a measure, at most one a minute; by RecordID and minute, in order."""
    plausible = long[long["Value"].between(measure.minimum, measure.maximum)]
    # What is preferred comes last: of parameters the first, of lines the later.
    rows = pd.concat([plausible[plausible["Parameter"] == name] for name in reversed(measure.parameters)])
    rows = rows.drop_duplicates(["RecordID", "minute"], keep="last")
    return rows.set_index(["RecordID", "minute"])["Value"].sort_index()


def _first(readings: pd.Series) -> pd.Series:
    """The first reading of each stay in its first day, by RecordID."""
    early = readings[readings.index.get_level_values("minute") < FIRST_DAY]
    return early.groupby(level="RecordID").first()


def _named(long: pd.DataFrame, parameter: str, names: Mapping[int, str]) -> pd.Series:
    """The name of the first known code of each stay in its first day, by RecordID."""
    codes = _readings(long, Measure((parameter,), min(names), max(names)))
    return _first(codes.map(names).dropna())


def _written(values: pd.Series, measure: Measure) -> pd.Series:
    """Numbers as text, empty for NaN."""
    return values.map(f"{{:.{measure.decimals}f}}".format, na_action="ignore").astype("str").fillna("")


def _check_own_numbers(long: pd.DataFrame) -> None:
    own = long[long["Parameter"] == "RecordID"]
    if bool(own["RecordID"].duplicated().any()):
        raise SchemaError("RecordID: a record is there twice", ExitCode.UNIT_REPEATED)
    if bool((own["Value"] != own["RecordID"]).any()) or len(own) < long["RecordID"].nunique():
        raise SchemaError("RecordID: a record does not hold its own number, or holds another")


def _check_same(stays: pd.Index, outcomes: pd.Index) -> None:
    if bool(outcomes.duplicated().any()):
        raise SchemaError("RecordID: a record has more than one outcome", ExitCode.UNIT_REPEATED)
    if not outcomes.isin(stays).all():
        raise SchemaError("RecordID: an outcome is of a record that is not there", ExitCode.UNIT_UNKNOWN)
    if len(outcomes) < len(stays):
        raise SchemaError("RecordID: a record has no outcome", ExitCode.UNIT_UNKNOWN)


def _read_records(path: Path) -> pd.DataFrame:
    """The lines of a set: RecordID and minute int64, Parameter categorical (missing: a line names none), Value float64.

    Raises:
        SchemaError: the set is absent or not of either form. Names the place of a fault by numbers, since a file is
            called like its stay.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise SchemaError(f"{path}: no such folder or Parquet file", ExitCode.TABLE_NOT_FOUND)
    return _read_parquet(path)


def _read_folder(folder: Path) -> pd.DataFrame:
    paths = sorted(path for path in folder.iterdir() if _RECORD_FILE.fullmatch(path.name))
    if not paths:
        raise SchemaError(f"{folder}: no file RecordID.txt in the folder", ExitCode.TABLE_WITHOUT_ROWS)
    record, minute, parameter, value = array("q"), array("q"), array("q"), array("d")
    for number, path in enumerate(paths, start=1):
        for at, code, reading in _read_lines(path, f"{folder}: file {number} in the order of names"):
            record.append(int(path.stem))
            minute.append(at)
            parameter.append(code)
            value.append(reading)
    names = pd.Categorical.from_codes(np.array(parameter, dtype=np.int64), pd.Index(_PARAMETERS))
    cells = (np.array(record), np.array(minute), names, np.array(value))
    return pd.DataFrame(dict(zip(_LONG, cells, strict=True)))


def _read_lines(path: Path, place: str) -> Iterator[tuple[int, int, float]]:
    """The minute, the code of the parameter and the value of each line of a record."""
    try:
        first, *lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"{place} cannot be read as UTF-8 text ({type(error).__name__})") from None
    if first.strip() != _FIRST_LINE:
        raise SchemaError(f"{place}, line 1: expected {_FIRST_LINE}")
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise SchemaError(f"{place}, line {number}: expected HH:MM, the name of a parameter and a number")
        hours, minutes, name, reading = found.groups()
        if name not in _CODES:
            raise SchemaError(f"{place}, line {number}: not a parameter of the challenge", ExitCode.UNLISTED_CATEGORY)
        yield 60 * int(hours) + int(minutes), _CODES[name], float(reading)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise SchemaError(f"{path}: Parquet needs pyarrow, which is not installed") from None
    except (ValueError, OSError) as error:
        raise SchemaError(f"{path}: neither a folder nor a Parquet file ({type(error).__name__})") from None
    for name in _LONG:
        if name not in table.columns:
            raise SchemaError(f"{path}: {name}: no such column", ExitCode.COLUMN_MISSING)
    parameter = table["Parameter"].astype("category").cat.remove_unused_categories()
    if not _CODES.keys() >= set(parameter.cat.categories):
        raise SchemaError(f"{path}: Parameter: not a parameter of the challenge", ExitCode.UNLISTED_CATEGORY)
    numbers = {
        "RecordID": _whole(table["RecordID"], below=10**9, place=path),
        "minute": _whole(table["minute"], below=_LATEST, place=path),
        "Parameter": parameter.cat.set_categories(list(_PARAMETERS)),
        "Value": pd.to_numeric(table["Value"], errors="coerce").astype("float64"),
    }
    if bool(numbers["Value"].isna().any()):
        raise SchemaError(f"{path}: Value: a value is missing or not a number", ExitCode.NOT_A_NUMBER)
    return pd.DataFrame(numbers)


def _whole(column: pd.Series, *, below: int, place: Path) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    if not bool((numbers.between(0, below, inclusive="left") & (numbers == np.floor(numbers))).all()):
        raise SchemaError(
            f"{place}: {column.name}: expected whole numbers from 0 to {below - 1}", ExitCode.NOT_A_NUMBER
        )
    return numbers.astype("int64")


def _read_outcomes(path: Path) -> pd.Series:
    """Whether each stay ended in death, no or yes, by RecordID.

    Raises:
        SchemaError: the file is absent or not such a table.
    """
    if not path.is_file():
        raise SchemaError(f"{path}: no such file of outcomes", ExitCode.TABLE_NOT_FOUND)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SchemaError(f"{path}: not a table of comma-separated UTF-8 text ({type(error).__name__})") from None
    if len(rows) < 2:
        raise SchemaError(f"{path}: expected a first line of names and outcomes below it", ExitCode.TABLE_WITHOUT_ROWS)
    for name in ("RecordID", _DEATH):
        if name not in rows[0]:
            raise SchemaError(f"{path}: {name}: no such column", ExitCode.COLUMN_MISSING)
    if len(set(map(len, rows))) > 1:
        raise SchemaError(f"{path}: a row has more or fewer cells than there are columns")
    table = pd.DataFrame(rows[1:], columns=rows[0], dtype="str")
    if not bool(table["RecordID"].str.fullmatch(_RECORD).all()):
        raise SchemaError(f"{path}: RecordID: expected whole numbers", ExitCode.NOT_A_NUMBER)
    if not bool(table[_DEATH].isin(list(DEATHS)).all()):
        raise SchemaError(f"{path}: {_DEATH}: expected 0 or 1", ExitCode.UNLISTED_CATEGORY)
    return pd.Series(table[_DEATH].map(DEATHS).to_numpy(), index=table["RecordID"].astype("int64"))


if __name__ == "__main__":
    app()
