"""The PhysioNet/CinC Challenge 2012: its converter on made-up records, its study, and the public set a under both."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from client.records import parse_text, read_series_text, read_text, read_windows
from common.data.schema import CategoricalColumn, ContinuousColumn
from common.errors import ExitCode as C
from common.errors import SchemaError
from common.study import Study, load_study
from simulations.converters import physionet2012
from simulations.converters.physionet2012 import CHANNELS, MEASURES, STAYS, app, convert
from simulations.splits import split

STUDY_FILE = Path(physionet2012.__file__).parents[1] / "studies" / "physionet2012.yaml"

Line = tuple[str, str, float]


def admission(record: int, icu_type: int, age: float = 54, gender: int = 0) -> list[Line]:
    """What stands at the beginning of each record."""
    given = {"RecordID": record, "Age": age, "Gender": gender, "Height": -1, "ICUType": icu_type, "Weight": -1}
    return [("00:00", name, value) for name, value in given.items()]


# The digits are nowhere else, so that a key in a message is seen.
FIRST, SECOND, THIRD = 987654321, 987654322, 987654323
RECORDS: dict[int, list[Line]] = {
    FIRST: [
        *admission(FIRST, 1),
        ("00:07", "GCS", 15),
        ("00:07", "HR", 73),
        ("00:07", "NIMAP", 92.33),
        ("00:07", "NISysABP", 147),
        ("00:07", "SysABP", 0),  # an open line: the cuff counts
        ("00:07", "Temp", 35.1),
        ("00:07", "Urine", 0),
        ("00:37", "HR", 77),
        ("00:37", "HR", 79),  # the later line counts
        ("00:37", "HR", 0),  # but not if no heart beats so
        ("01:00", "NISysABP", 110),
        ("01:00", "SysABP", 120),
        ("01:00", "MAP", 80),
        ("01:00", "NIMAP", 85),
        ("02:00", "", 60),  # a line without a name, as in set c
        ("03:00", "Temp", 0),
        ("03:00", "pH", 700),
        ("03:00", "DiasABP", 60),
        ("04:00", "MechVent", 0),
        ("05:00", "FiO2", 0.5),
        ("05:00", "MechVent", 1),
        ("06:00", "BUN", 13),
        ("06:00", "Weight", 81.3),
        ("06:30", "Lactate", 31),
        ("07:00", "BUN", 20),
        ("08:00", "Lactate", 2.46),
        ("24:00", "Platelets", 200),
        ("48:00", "HR", 60),
    ],
    SECOND: [
        *admission(SECOND, 4, age=90, gender=1),
        ("00:00", "Height", 175.3),
        ("01:00", "MechVent", 0),
        ("23:59", "Creatinine", 0.8),
        ("24:00", "MechVent", 1),
    ],
    THIRD: [*admission(THIRD, 2, age=15, gender=-1), ("47:59", "Urine", 30)],
}
DEATHS = {FIRST: 0, SECOND: 1, THIRD: 0}

EXPECTED_STAYS = pd.DataFrame(
    [
        [str(FIRST), "coronary", "54", "female", "", "81.3", "yes", "13", "", "2.5", "", "", "", "no"],
        [str(SECOND), "surgical", "90", "male", "175", "", "no", "", "0.8", "", "", "", "", "yes"],
        [str(THIRD), "cardiac_surgery", "15", "", "", "", "no", "", "", "", "", "", "", "no"],
    ],
    columns=[
        *("RecordID", "ICUType", "Age", "Gender", "Height", "Weight", "MechVent", "BUN", "Creatinine", "Lactate"),
        *("HCO3", "WBC", "Platelets", "died"),
    ],
    dtype="str",
)
EXPECTED_SERIES = pd.DataFrame(
    [
        [str(FIRST), "7", "73", "147", "92", "35.1", "15", "0", ""],
        [str(FIRST), "37", "79", "", "", "", "", "", ""],
        [str(FIRST), "60", "", "120", "80", "", "", "", ""],
        [str(FIRST), "300", "", "", "", "", "", "", "0.50"],
        [str(FIRST), "2880", "60", "", "", "", "", "", ""],
        [str(THIRD), "2879", "", "", "", "", "", "30", ""],
    ],
    columns=["RecordID", "minute", "HR", "SysBP", "MeanBP", "Temp", "GCS", "Urine", "FiO2"],
    dtype="str",
)


def write_folder(folder: Path, records: Mapping[int, Sequence[Line]] = RECORDS) -> Path:
    """The records as they are distributed."""
    folder.mkdir()
    for record, lines in records.items():
        body = "".join(f"{time},{parameter},{value}\n" for time, parameter, value in lines)
        (folder / f"{record}.txt").write_text(f"Time,Parameter,Value\n{body}", encoding="utf-8")
    return folder


def long_form(records: Mapping[int, Sequence[Line]] = RECORDS) -> pd.DataFrame:
    rows = [
        (record, int(time[:2]) * 60 + int(time[3:]), parameter, float(value))
        for record, lines in records.items()
        for time, parameter, value in lines
    ]
    return pd.DataFrame(rows, columns=["RecordID", "minute", "Parameter", "Value"])


def write_parquet(path: Path, records: Mapping[int, Sequence[Line]] = RECORDS) -> Path:
    pytest.importorskip("pyarrow")
    long_form(records).astype({"Parameter": "category"}).to_parquet(path)
    return path


def write_outcomes(path: Path, deaths: Mapping[int, int] = DEATHS) -> Path:
    lines = [f"{record},6,1,5,-1,{death}\n" for record, death in deaths.items()]
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
    path.write_text(header + "".join(lines), encoding="utf-8")
    return path


def convert_records(records: Mapping[int, Sequence[Line]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(Path(name) / "set", records)
        return convert([folder], [write_outcomes(Path(name) / "Outcomes.txt", dict.fromkeys(records, 1))])


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- what the converter writes


@pytest.mark.parametrize("write", [write_folder, write_parquet])
def test_both_forms_give_the_tables_that_the_lines_say(write: Callable[[Path], Path], tmp_path: Path) -> None:
    stays, series = convert([write(tmp_path / "set")], [write_outcomes(tmp_path / "Outcomes.txt")])
    pd.testing.assert_frame_equal(stays, EXPECTED_STAYS)
    pd.testing.assert_frame_equal(series, EXPECTED_SERIES)


def test_sets_are_joined_and_their_order_does_not_count(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one", {THIRD: RECORDS[THIRD]})
    two = write_parquet(tmp_path / "two.parquet", {SECOND: RECORDS[SECOND], FIRST: RECORDS[FIRST]})
    outcomes = [
        write_outcomes(tmp_path / "a.txt", {SECOND: 1}),
        write_outcomes(tmp_path / "b.txt", {THIRD: 0, FIRST: 0}),
    ]
    for records in ([one, two], [two, one]):
        stays, series = convert(records, outcomes)
        pd.testing.assert_frame_equal(stays, EXPECTED_STAYS)
        pd.testing.assert_frame_equal(series, EXPECTED_SERIES)


def test_lines_that_are_not_in_the_order_of_time_are_sorted_but_those_of_a_minute_keep_theirs(tmp_path: Path) -> None:
    shuffled = {FIRST: sorted(RECORDS[FIRST], key=lambda line: line[0], reverse=True)}
    folder, outcomes = write_folder(tmp_path / "set", shuffled), write_outcomes(tmp_path / "o.txt", {FIRST: 0})
    stays, series = convert([folder], [outcomes])
    pd.testing.assert_frame_equal(stays, EXPECTED_STAYS[:1])
    pd.testing.assert_frame_equal(series, EXPECTED_SERIES[:5])


def test_a_stay_is_written_the_same_whoever_else_is_there(tmp_path: Path) -> None:
    alone = write_folder(tmp_path / "set", {FIRST: RECORDS[FIRST]})
    stays, series = convert([alone], [write_outcomes(tmp_path / "o.txt", {FIRST: 0})])
    pd.testing.assert_frame_equal(stays, EXPECTED_STAYS[:1])
    pd.testing.assert_frame_equal(series, EXPECTED_SERIES[:5])


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    folder, outcomes = write_folder(tmp_path / "set"), write_outcomes(tmp_path / "Outcomes.txt")
    for path in (*folder.iterdir(), outcomes):
        text = path.read_text(encoding="utf-8").replace("\n", "\r\n") + "\r\n"
        path.write_bytes(("\ufeff" + text).encode())
    (folder / "readme.txt").write_text("not a record", encoding="utf-8")
    stays, series = convert([folder], [outcomes])
    pd.testing.assert_frame_equal(stays, EXPECTED_STAYS)
    pd.testing.assert_frame_equal(series, EXPECTED_SERIES)


ENDS = sorted({end + by for m in MEASURES.values() for end in (m.minimum, m.maximum) for by in (-0.01, 0, 0.01)})


@settings(max_examples=10, deadline=None)
@given(values=st.lists(st.floats(-1e4, 1e4).map(lambda value: round(value, 3)), min_size=5, max_size=30))
def test_a_value_inside_its_range_is_written_and_one_outside_leaves_the_cell_empty(values: list[float]) -> None:
    values = [*values, *ENDS]
    parameters = sorted({name for measure in MEASURES.values() for name in measure.parameters})
    lines = [[("01:00", name, value) for name in parameters] for value in values]
    records = {FIRST + at: [*admission(FIRST + at, 3, age=-1), *lines[at]] for at in range(len(values))}
    stays, series = convert_records(records)
    cells = stays.merge(series, on="RecordID", how="left").fillna("")
    assert cells["RecordID"].tolist() == [str(record) for record in records]
    for name, measure in MEASURES.items():
        for value, cell in zip(values, cells[name], strict=True):
            assert (cell != "") == (measure.minimum <= value <= measure.maximum), (name, value)
            if cell:
                assert math.isclose(float(cell), value, abs_tol=0.5 * 10**-measure.decimals + 1e-9), (name, value)
                assert len(cell.partition(".")[2]) == measure.decimals
                assert measure.minimum <= float(cell) <= measure.maximum


@pytest.mark.parametrize("name", ["SysBP", "MeanBP"])
@pytest.mark.parametrize("swap", [False, True])
def test_invasive_pressure_goes_before_the_cuff_in_the_same_minute_alone(name: str, swap: bool) -> None:
    invasive, cuff = MEASURES[name].parameters
    pair = [("01:00", invasive, 100.0), ("01:00", cuff, 90.0)]
    lines = [*(pair[::-1] if swap else pair), ("01:01", cuff, 91.0)]
    _, series = convert_records({FIRST: [*admission(FIRST, 3), *lines]})
    assert series[name].tolist() == ["100", "91"]


def test_nothing_of_the_outcomes_but_death_is_written(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    before = convert([folder], [write_outcomes(tmp_path / "Outcomes.txt")])
    only = tmp_path / "only.txt"
    only.write_text(
        "In-hospital_death,RecordID\n" + "".join(f"{death},{record}\n" for record, death in DEATHS.items()),
        encoding="utf-8",
    )
    for one, other in zip(before, convert([folder], [only]), strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_the_command_writes_both_tables_which_the_study_reads(tmp_path: Path) -> None:
    study, out = load_study(STUDY_FILE), tmp_path / "new" / "out"
    records, outcomes = write_folder(tmp_path / "set"), write_outcomes(tmp_path / "Outcomes.txt")
    done = invoke("--records", records, "--outcomes", outcomes, "--out", out)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert "3 stays" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["series.csv", "stays.csv"]
    for name, expected in (("stays", EXPECTED_STAYS), ("series", EXPECTED_SERIES)):
        assert (out / f"{name}.csv").read_text(encoding="utf-8") == expected.to_csv(index=False, lineterminator="\n")
    stays = parse_text(read_text(out / "stays.csv", study), study)
    values, _ = read_windows(stays, read_series_text(out / "series.csv", study), study)
    assert values[0, 0].tolist()[:4] == [76.0, 134.0, 86.0, 35.1]  # means of 73, 79; of 147, 120; of 92, 80
    assert np.isnan(values[1]).all()
    assert values[2, -1, CHANNELS.index("Urine")] == 30


# --- what it refuses


@dataclass(frozen=True)
class Case:
    """How it must end, what the one line says, and what is wrong in the folder of inputs."""

    code: C
    says: tuple[str, ...]
    change: Callable[[Path], object]
    form: str = "text"


CELL = "SECRET7319"


def in_record(old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "set" / f"{FIRST}.txt"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def in_outcomes(old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "Outcomes.txt"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def in_long_form(edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        edit(pd.read_parquet(folder / "set")).to_parquet(folder / "set")

    return change


def with_cell(column: str, value: object) -> Callable[[Path], object]:
    """One cell of the long form, in a line of a channel."""

    def edit(long: pd.DataFrame) -> pd.DataFrame:
        cells = long[column].astype("object")
        cells.iloc[7] = value
        return long.assign(**{column: cells.astype("str") if column == "Parameter" else cells.astype("float64")})

    return in_long_form(edit)


CASES = {
    "no records": Case(
        C.TABLE_NOT_FOUND, ("set", "no such"), lambda folder: (folder / "set").rename(folder / "elsewhere")
    ),
    "no outcomes": Case(
        C.TABLE_NOT_FOUND, ("Outcomes.txt", "no such"), lambda folder: (folder / "Outcomes.txt").unlink()
    ),
    "a folder without records": Case(
        C.TABLE_WITHOUT_ROWS,
        ("set", "RecordID.txt"),
        lambda folder: [path.unlink() for path in (folder / "set").iterdir()],
    ),
    "no first line": Case(
        C.TABLE_UNREADABLE, ("file 1 ", "line 1", "Time,Parameter,Value"), in_record("Time,Parameter,Value\n", "")
    ),
    "an empty file": Case(
        C.TABLE_UNREADABLE, ("file 1 ", "line 1"), lambda folder: (folder / "set" / f"{FIRST}.txt").write_text("")
    ),
    "a line that lacks a cell": Case(
        C.TABLE_UNREADABLE, ("file 1 ", "line 9", "HH:MM"), in_record("00:07,HR,73\n", f"00:07,{CELL}\n")
    ),
    "a line with a cell too many": Case(
        C.TABLE_UNREADABLE, ("file 1 ", "line 9"), in_record("HR,73\n", f"HR,73,{CELL}\n")
    ),
    "a value that is no number": Case(
        C.TABLE_UNREADABLE, ("file 1 ", "line 9", "number"), in_record("HR,73\n", f"HR,{CELL}\n")
    ),
    "a value that is not finite": Case(C.TABLE_UNREADABLE, ("line 9", "number"), in_record("HR,73\n", "HR,nan\n")),
    "a time that is none": Case(C.TABLE_UNREADABLE, ("line 9", "HH:MM"), in_record("00:07,HR", "00:60,HR")),
    "a time before admission": Case(C.TABLE_UNREADABLE, ("line 9", "HH:MM"), in_record("00:07,HR", "-0:07,HR")),
    "a parameter that the challenge does not have": Case(
        C.UNLISTED_CATEGORY, ("line 9", "not a parameter"), in_record("HR,73", f"{CELL},73")
    ),
    "a file that is not text": Case(
        C.TABLE_UNREADABLE, ("file 1 ", "UTF-8"), lambda folder: (folder / "set" / f"{FIRST}.txt").write_bytes(b"\xff")
    ),
    "an unknown type of unit": Case(C.UNLISTED_CATEGORY, ("ICUType", "1 to 4"), in_record("ICUType,1", "ICUType,5")),
    "a type between two": Case(C.UNLISTED_CATEGORY, ("ICUType", "1 to 4"), in_record("ICUType,1", "ICUType,1.5")),
    "no type of unit, as in the first phase": Case(
        C.UNLISTED_CATEGORY, ("ICUType", "1 to 4"), in_record("00:00,ICUType,1\n", "")
    ),
    "a record under another's name": Case(
        C.TABLE_UNREADABLE, ("RecordID", "own number"), in_record(f"RecordID,{FIRST}", "RecordID,7319")
    ),
    "a record without its number": Case(
        C.TABLE_UNREADABLE, ("RecordID", "own number"), in_record(f"00:00,RecordID,{FIRST}\n", "")
    ),
    "a record that is there twice": Case(
        C.UNIT_REPEATED, ("RecordID", "twice"), in_record(f"00:00,RecordID,{FIRST}\n", f"00:00,RecordID,{FIRST}\n" * 2)
    ),
    "an outcome without a record": Case(
        C.UNIT_UNKNOWN, ("RecordID", "outcome"), lambda folder: (folder / "set" / f"{FIRST}.txt").unlink()
    ),
    "a record without an outcome": Case(
        C.UNIT_UNKNOWN, ("RecordID", "no outcome"), in_outcomes(f"{SECOND},6,1,5,-1,1\n", "")
    ),
    "a stay with two outcomes": Case(
        C.UNIT_REPEATED, ("RecordID", "more than one"), in_outcomes(f"{SECOND},6,1,5,-1,1\n", f"{FIRST},6,1,5,-1,1\n")
    ),
    "outcomes that are empty": Case(
        C.TABLE_WITHOUT_ROWS, ("Outcomes.txt", "first line"), lambda folder: (folder / "Outcomes.txt").write_text("")
    ),
    "outcomes that do not say who died": Case(
        C.COLUMN_MISSING, ("Outcomes.txt", "In-hospital_death"), in_outcomes("In-hospital_death", "death")
    ),
    "outcomes of nobody": Case(C.COLUMN_MISSING, ("Outcomes.txt", "RecordID"), in_outcomes("RecordID", "ID")),
    "an outcome that lacks a cell": Case(
        C.TABLE_UNREADABLE, ("Outcomes.txt", "cells"), in_outcomes(f"{SECOND},6,1,5,-1,1\n", f"{SECOND},6,1,5,-1\n")
    ),
    "an outcome with a cell too many": Case(
        C.TABLE_UNREADABLE, ("Outcomes.txt", "cells"), in_outcomes(f"{SECOND},6,", f"{SECOND},6,{CELL},")
    ),
    "an outcome that is neither": Case(
        C.UNLISTED_CATEGORY, ("In-hospital_death", "0 or 1"), in_outcomes("6,1,5,-1,1\n", f"6,1,5,-1,{CELL}\n")
    ),
    "an outcome of a word": Case(C.NOT_A_NUMBER, ("Outcomes.txt", "RecordID"), in_outcomes(f"{SECOND},", f"{CELL},")),
    "outcomes that are not text": Case(
        C.TABLE_UNREADABLE, ("Outcomes.txt", "UTF-8"), lambda folder: (folder / "Outcomes.txt").write_bytes(b"\xff")
    ),
    "outcomes in place of records": Case(
        C.TABLE_UNREADABLE,
        ("neither a folder nor a Parquet file",),
        lambda folder: (folder / "Outcomes.txt").rename(folder / "set"),
        form="none",
    ),
    "a long form without a column": Case(
        C.COLUMN_MISSING, ("minute", "no such column"), in_long_form(lambda long: long.drop(columns="minute")), "long"
    ),
    "a long form with half a minute": Case(C.NOT_A_NUMBER, ("minute", "whole"), with_cell("minute", 7.5), "long"),
    "a long form with a minute before admission": Case(
        C.NOT_A_NUMBER, ("minute", "whole"), with_cell("minute", -1), "long"
    ),
    "a long form with a line of nobody": Case(
        C.NOT_A_NUMBER, ("RecordID", "whole"), with_cell("RecordID", math.nan), "long"
    ),
    "a long form without a value": Case(C.NOT_A_NUMBER, ("Value", "number"), with_cell("Value", math.nan), "long"),
    "a long form with an unknown parameter": Case(
        C.UNLISTED_CATEGORY, ("Parameter", "challenge"), with_cell("Parameter", CELL), "long"
    ),
    "a long form in which a record is there twice": Case(
        C.UNIT_REPEATED, ("RecordID", "twice"), in_long_form(lambda long: pd.concat([long, long])), "long"
    ),
    "stays that were written before": Case(
        C.OUTPUT_NOT_WRITABLE, ("stays.csv", "exists"), lambda folder: write_old(folder, "stays.csv")
    ),
    "series that were written before": Case(
        C.OUTPUT_NOT_WRITABLE, ("series.csv", "exists"), lambda folder: write_old(folder, "series.csv")
    ),
    "a file in place of the folder to write to": Case(
        C.OUTPUT_NOT_WRITABLE, ("cannot be written",), lambda folder: (folder / "out").write_text("")
    ),
}


def write_old(folder: Path, name: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("old", encoding="utf-8")


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(case: Case, tmp_path: Path) -> None:
    write_outcomes(tmp_path / "Outcomes.txt")
    if case.form != "none":
        (write_folder if case.form == "text" else write_parquet)(tmp_path / "set")
    case.change(tmp_path)
    before = everything_in(tmp_path)
    done = invoke(
        *("--records", tmp_path / "set", "--outcomes", tmp_path / "Outcomes.txt", "--out", tmp_path / "out"),
    )
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert (done.exit_code, done.stdout) == (case.code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in case.says), line
    # Neither a cell nor a unit's key: those of the records share their first eight digits.
    assert CELL not in line
    assert str(FIRST)[:-1] not in line
    assert everything_in(tmp_path) == before


def test_the_same_set_given_twice_is_refused(tmp_path: Path) -> None:
    folder, outcomes = write_folder(tmp_path / "set"), write_outcomes(tmp_path / "Outcomes.txt")
    with pytest.raises(SchemaError, match="a record is there twice"):
        convert([folder, folder], [outcomes])
    with pytest.raises(SchemaError, match="more than one outcome"):
        convert([folder], [outcomes, outcomes])


def test_without_pyarrow_the_long_form_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: Path) -> None:
        raise ImportError

    monkeypatch.setattr(pd, "read_parquet", absent)
    (tmp_path / "set.parquet").write_bytes(b"")
    with pytest.raises(SchemaError, match="needs pyarrow"):
        convert([tmp_path / "set.parquet"], [write_outcomes(tmp_path / "Outcomes.txt")])


@pytest.mark.parametrize("missing", ["--records", "--outcomes", "--out"])
def test_an_option_that_is_not_given_is_a_usage_error_that_names_it(missing: str, tmp_path: Path) -> None:
    given = {"--records": write_folder(tmp_path / "set"), "--outcomes": write_outcomes(tmp_path / "o.txt")}
    given |= {"--out": tmp_path / "out"}
    done = invoke(*(word for name, value in given.items() if name != missing for word in (name, value)))
    assert done.exit_code == C.USAGE
    assert missing in done.stderr
    assert not (tmp_path / "out").exists()


# --- the study


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDY_FILE)


def test_the_study_takes_bounds_and_categories_from_the_converter_and_not_from_rows(study: Study) -> None:
    columns = {**study.columns, **study.channels}
    categories = {
        "Gender": tuple(physionet2012.GENDERS.values()),
        "ICUType": tuple(physionet2012.ICU_TYPES.values()),
        "MechVent": ("no", "yes"),
        "died": tuple(physionet2012.DEATHS.values()),
    }
    assert set(columns) | set(study.ignore) == set(categories) | set(MEASURES)
    for name, column in columns.items():
        if isinstance(column, CategoricalColumn):
            assert column.values == categories[name]
        else:
            measure = MEASURES[name]
            assert (column.min, column.max) == (measure.minimum, measure.maximum), name
            assert (column.decimals if isinstance(column, ContinuousColumn) else 0) == measure.decimals, name
            # What lies outside is made empty before; should it not be, the table is refused.
            assert column.outside == "refuse"


def test_the_study_has_the_columns_that_the_converter_writes(study: Study) -> None:
    assert study.windows is not None
    assert set(study.columns) | set(study.ignore) == set(STAYS)
    assert (study.windows.columns, study.windows.ignore) == (("minute", *CHANNELS), ())


def test_what_holds_the_outcome_or_comes_after_it_is_not_in_the_tables() -> None:
    written = " ".join((*STAYS, *CHANNELS)).lower()
    assert not any(word in written for word in ("saps", "sofa", "stay", "survival"))


def test_the_study_covers_two_days_in_steps_of_four_hours(study: Study) -> None:
    windows = study.windows
    assert windows is not None
    assert (windows.layout, windows.starts_at, windows.step) == ("grid", 0, 240)
    assert windows.length * windows.step == 48 * 60
    # A coma is scored in whole points, and the last one counts.
    assert windows.combine == {name: "last" if name == "GCS" else "mean" for name in CHANNELS}


def test_the_study_protects_a_stay_below_the_published_number_of_stays(study: Study) -> None:
    assert (study.name, study.unit.key, study.unit.max_records) == (STUDY_FILE.stem, "RecordID", 1)
    assert (study.label.column, study.label.positive) == ("died", "yes")
    assert study.privacy.epsilon == 1
    assert study.privacy.delta < 1 / 12_000


# --- the public set a


@dataclass(frozen=True)
class Real:
    """Both tables of set a as text."""

    stays: pd.DataFrame
    series: pd.DataFrame


@pytest.fixture(scope="module")
def real(real_data: Path) -> Real:
    pytest.importorskip("pyarrow")
    folder = real_data / "physionet2012-icu"
    files = folder / "set-a.parquet", folder / "Outcomes-a.txt"
    for path in files:
        if not path.is_file():
            pytest.skip(f"no real data: {path} is absent")
    return Real(*convert([files[0]], [files[1]]))


def test_set_a_has_the_published_numbers_of_stays_deaths_and_units(real: Real) -> None:
    # Origin: Silva et al. 2012 and the page of the challenge; types of unit as counted by who keeps the data.
    assert len(real.stays) == real.stays["RecordID"].nunique() == 4_000
    assert real.stays["died"].eq("yes").sum() == 554
    assert real.stays["ICUType"].value_counts().to_dict() == {
        "coronary": 577, "cardiac_surgery": 874, "medical": 1_481, "surgical": 1_068,
    }  # fmt: skip


def test_set_a_parses_under_the_study_and_has_a_window_for_every_stay(real: Real, study: Study) -> None:
    assert study.windows is not None
    stays = parse_text(real.stays, study)
    values, lengths = read_windows(stays, real.series, study)
    assert values.shape == (4_000, 12, len(CHANNELS))
    assert (lengths == 12).all()
    for at, (name, column) in enumerate(study.channels.items()):
        assert not isinstance(column, CategoricalColumn)
        found = values[:, :, at][~np.isnan(values[:, :, at])]
        assert len(np.unique(found)) > 2, name
        assert found.min() >= column.min, name
        assert found.max() <= column.max, name
    # A column of one value would be refused.
    assert all(len(stays[name].unique()) > 1 for name in study.columns)


def test_a_row_of_the_series_is_one_minute_of_a_stay_and_holds_a_value(real: Real) -> None:
    assert not real.series.duplicated(["RecordID", "minute"]).any()
    assert set(real.series["RecordID"]) <= set(real.stays["RecordID"])
    assert real.series[list(CHANNELS)].ne("").any(axis=1).all()
    assert real.series["minute"].astype(int).between(0, 2880).all()


def test_the_type_of_unit_divides_set_a_over_four_sites_and_stays_a_column(real: Real, study: Study) -> None:
    assert "ICUType" in study.columns
    sites = split(real.stays, study, sites=4, how="column:ICUType", seed=0)
    held = [real.stays["ICUType"].iloc[rows].unique().tolist() for rows in sites]
    assert sorted(map(tuple, held)) == [("cardiac_surgery",), ("coronary",), ("medical",), ("surgical",)]
    assert sorted(map(len, sites)) == [577, 874, 1_068, 1_481]
