"""`privshare init` and `privshare check`, as an operator runs them: a draft that a human must finish, and a plan."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from common.data.schema import DatetimeColumn
from common.errors import ExitCode
from common.privacy.budget import epsilon_of, mu_of
from common.study import Study, load_study
from server.cli import app

HEADER = ["patient", "age", "dose", "ward", "note", "site", "died"]
ROWS = [
    [
        str(5000 + 7 * at),
        str(20 + at % 51),
        f"{at * 0.37:.2f}",
        ("north", "south", "west")[at % 3],
        f"seen by Dr. {at}",
        "main",
        ("no", "yes")[at % 5 == 0],
    ]
    for at in range(120)
]


def table(rows: list[list[str]] = ROWS, header: list[str] = HEADER, delimiter: str = ",") -> str:
    return "".join(delimiter.join(row) + "\n" for row in [header, *rows])


def with_column(name: str, cells: Callable[[int], str]) -> str:
    """The table with one more column."""
    return table([[*row, cells(at)] for at, row in enumerate(ROWS)], [*HEADER, name])


def run(*arguments: str | Path) -> Result:
    """The command's end; never a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def fails(result: Result, code: ExitCode) -> str:
    """The one line of an error."""
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


Draft = Callable[..., str]


@pytest.fixture
def draft(tmp_path: Path) -> Draft:
    """The draft of a table; its file is study.yaml."""

    def write(text: str = "", *options: str, name: str = "table.csv") -> str:
        (tmp_path / name).write_text(text or table(), encoding="utf-8")
        (tmp_path / "study.yaml").unlink(missing_ok=True)
        result = run("init", "--from-csv", tmp_path / name, "--out", tmp_path / "study.yaml", *options)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == ""
        return (tmp_path / "study.yaml").read_text(encoding="utf-8")

    return write


def finish(text: str, folder: Path) -> Study:
    """What a human makes of a draft, the bounds aside."""
    assert text.count("draft: true\n") == 1
    path = folder / "finished.yaml"
    path.write_text(text.replace("draft: true\n", ""), encoding="utf-8")
    assert run("check", path).exit_code == 0
    return load_study(path)


# --- init


def test_a_draft_is_yaml_that_no_command_accepts_until_a_human_says_it_is_done(draft: Draft, tmp_path: Path) -> None:
    text = draft()
    assert yaml.safe_load(text)["draft"] is True
    assert ": draft: " in fails(run("check", tmp_path / "study.yaml"), ExitCode.STUDY_INVALID)
    study = finish(text, tmp_path)
    assert list(study.columns) == ["age", "dose", "ward", "died"]
    assert {name: column.type for name, column in study.columns.items()} == {
        "age": "integer",
        "dose": "continuous",
        "ward": "categorical",
        "died": "categorical",
    }
    assert (study.label.column, study.label.positive) == ("died", "yes")


def test_every_bound_and_every_list_that_was_read_off_the_rows_is_marked(draft: Draft, tmp_path: Path) -> None:
    text = draft()
    lines = text[text.index("\ncolumns:") :].splitlines()
    read_off = [line for line in lines if line.split("#")[0].strip().split(":")[0] in ("min", "max", "categories")]
    assert len(read_off) == 6
    assert all(line.endswith("# REPLACE: read off the rows") for line in read_off)
    assert text.count("REPLACE: ") == 6
    result = run("init", "--from-csv", tmp_path / "table.csv", "--out", tmp_path / "other.yaml")
    assert "6 lines marked REPLACE" in result.stderr
    assert "draft: true" in result.stderr


def test_what_tells_people_apart_is_not_in_a_draft(draft: Draft, tmp_path: Path) -> None:
    text = draft()
    # Numbers that differ in every row, texts that differ in most, and a column of one value.
    assert finish(text, tmp_path).ignore == ("patient", "note", "site")
    for cell in ("5007", "5833", "seen by", "main"):
        assert cell not in text


def test_bounds_are_rounded_outward_and_hold_every_row(draft: Draft, tmp_path: Path) -> None:
    values = [
        [
            f"{1210.5 + 0.4 * at:.1f}",
            f"{-0.00123 * (at + 1)}",
            f"{1.7e-13 * (at + 1)}",
            str(at % 9 * 1111),
            "ab"[at % 2],
        ]
        for at in range(50)
    ]
    study = finish(draft(table(values, ["high", "low", "tiny", "whole", "label"])), tmp_path)
    for position, (name, column) in enumerate(study.features.items()):
        assert column.type != "categorical"
        cells = [float(row[position]) for row in values]
        assert column.min <= min(cells) < max(cells) <= column.max, name
        for bound in (column.min, column.max):
            assert float(f"{bound:.1e}") == bound, name
    assert study.features["high"].max == 1300  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cells", "rules"),
    [
        (["2020-05-05", "2021-06-07", "2019-01-01", ""], ("2019-01-01", "2021-12-31", "day", None)),
        (["2020-05-05 10:00", "2020-06-07 11:00", "2020-01-01"], ("2020-01-01", "2020-12-31T23:00", "hour", None)),
        (
            ["2020-05-05T10:00+02:00", "2020-06-07T11:30Z", "2020-01-01T00:00:00Z"],
            ("2020-01-01", "2020-12-31T23:59", "minute", "UTC"),
        ),
        (["2020-05-05 10:00:00.5", "2020-01-01", "2020-02-02"], ("2020-01-01", "2020-12-31T23:59:59", "second", None)),
    ],
)
def test_moments_are_drafted_as_moments_between_whole_years(
    draft: Draft, tmp_path: Path, cells: list[str], rules: tuple[str, str, str, str | None]
) -> None:
    text = draft(with_column("seen", lambda at: cells[at % len(cells)]), "--label", "died")
    column = finish(text, tmp_path).columns["seen"]
    assert isinstance(column, DatetimeColumn)
    assert (column.first, column.last, column.unit, column.timezone) == rules
    assert column.missing == ("" in cells)
    assert text.count("REPLACE: ") == 8
    for cell in filter(None, cells):
        assert cell not in text or cell.endswith("-01-01")
        assert 0 <= column.read(cell) <= column.max


def test_whole_numbers_beyond_what_floats_hold_are_drafted_as_whole(draft: Draft, tmp_path: Path) -> None:
    text = draft(with_column("far", lambda at: str(9 * 10**18 + 2 * 10**17 * (at % 2) + at % 3)), "--label", "died")
    column = finish(text, tmp_path).columns["far"]
    assert (column.type, column.max) == ("integer", 2**63 - 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_part_of_the_draft(draft: Draft, tmp_path: Path, delimiter: str) -> None:
    study = finish(draft(table(delimiter=delimiter), "--delimiter", delimiter), tmp_path)
    assert study.table.delimiter == delimiter
    assert list(study.features) == ["age", "dose", "ward"]


def test_a_column_with_empty_cells_may_be_missing(draft: Draft, tmp_path: Path) -> None:
    rows = [
        [*row[:2], "" if at % 9 == 0 else row[2], "" if at % 7 == 0 else row[3], *row[4:]]
        for at, row in enumerate(ROWS)
    ]
    columns = finish(draft(table(rows)), tmp_path).columns
    assert {name for name, column in columns.items() if column.missing} == {"dose", "ward"}
    assert columns["ward"].values == ("north", "south", "west")  # type: ignore[union-attr]


def test_the_label_is_the_one_that_is_named_or_the_last_with_two_values(draft: Draft, tmp_path: Path) -> None:
    text = with_column("last", lambda at: "xyz"[at % 3])
    assert finish(draft(text), tmp_path).label.column == "died"
    assert finish(draft(with_column("last", lambda at: "xy"[at % 2])), tmp_path).label.column == "last"
    assert finish(draft(text, "--label", "last"), tmp_path).label.column == "last"
    assert finish(draft(with_column("code", lambda at: str(at % 4)), "--label", "code"), tmp_path).label_values == (
        *"0123",
    )


@pytest.mark.parametrize(
    "name",
    [
        "_table.csv",
        "-t.csv",
        ".csv",
        "my table.csv",
        "t\u00e9.csv",
        "\u00b2.csv",
        "x" * 100 + ".csv",
        "...",
        "2026.01.csv",
        "a:b#c.csv",
    ],
)
def test_whatever_the_file_is_called_the_study_has_a_name(draft: Draft, tmp_path: Path, name: str) -> None:
    assert finish(draft(name=name), tmp_path).name


@pytest.mark.parametrize(
    "odd",
    ["yes", "no", "null", "~", "1.10", "007", "a: b", "a #b", "- a", "{a}", "'", "\\n", "%", "@a", "\u00e9\u4e16",
     "\U0001f600", "a\u0085b", "a\u2028b", "a\x7fb", "NaN", "0x1F", "word " * 60 + "."],
)  # fmt: skip
def test_names_and_categories_come_out_of_a_draft_as_they_stand_in_the_table(
    draft: Draft, tmp_path: Path, odd: str
) -> None:
    rows = [[*row, odd if at % 2 else "plain", "constant"] for at, row in enumerate(ROWS)]
    study = finish(draft(table(rows, [*HEADER, odd, f"{odd}!"]), "--label", "died"), tmp_path)
    assert odd in study.columns
    assert f"{odd}!" in study.ignore
    assert set(study.columns[odd].values) == {odd, "plain"}  # type: ignore[union-attr]


def test_a_packed_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(table().encode()))
    assert run("init", "--from-csv", tmp_path / "table.csv.gz", "--out", tmp_path / "study.yaml").exit_code == 0
    finish((tmp_path / "study.yaml").read_text(encoding="utf-8"), tmp_path)


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(table(), encoding="utf-8")
    (tmp_path / "study.yaml").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "study.yaml", tmp_path):
        line = fails(run("init", "--from-csv", tmp_path / "table.csv", "--out", out), ExitCode.OUTPUT_NOT_WRITABLE)
        assert f"{out}: exists already" in line
    assert (tmp_path / "study.yaml").read_text(encoding="utf-8") == "mine"


def test_an_output_that_cannot_be_written_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(table(), encoding="utf-8")
    out = tmp_path / "table.csv" / "study.yaml"
    fails(run("init", "--from-csv", tmp_path / "table.csv", "--out", out), ExitCode.OUTPUT_NOT_WRITABLE)


def damaged(body: bytes) -> bytes:
    packed = bytearray(gzip.compress(body, mtime=0))
    packed[30] ^= 0xFF
    return bytes(packed)


CELL = "SECRET-7319"


@pytest.mark.parametrize(
    ("name", "body", "options", "code"),
    [
        ("table.csv", None, [], ExitCode.TABLE_NOT_FOUND),
        ("table.csv", b"", [], ExitCode.TABLE_EMPTY),
        ("table.csv", b"\n\n", [], ExitCode.TABLE_EMPTY),
        ("table.csv", b"age,died\n", [], ExitCode.TABLE_WITHOUT_ROWS),
        ("table.csv", b"age,died\n\xff\xfe,1\n", [], ExitCode.TABLE_UNREADABLE),
        ("table.csv", f"age,died\n1,2\n1,2,{CELL}\n".encode(), [], ExitCode.TABLE_UNREADABLE),
        ("table.csv", f"age,died\n{CELL},1,2\n{CELL},3,4\n".encode(), [], ExitCode.TABLE_UNREADABLE),
        ("table.csv", f'age,died\n"{CELL},1\n'.encode(), [], ExitCode.TABLE_UNREADABLE),
        ("table.csv.gz", f"age,died\n{CELL},1\n".encode(), [], ExitCode.TABLE_UNREADABLE),
        ("table.csv.gz", gzip.compress(table().encode())[:-20], [], ExitCode.TABLE_UNREADABLE),
        ("table.csv.gz", damaged(table().encode()), [], ExitCode.TABLE_UNREADABLE),
        ("table.csv", table().encode(), ["--label", "absent"], ExitCode.COLUMN_MISSING),
        ("table.csv", b"a,b\n1,2\n3,4\n5,6\n7,8\n", [], ExitCode.COLUMN_MISSING),
        ("table.csv", table().encode(), ["--label", "site"], ExitCode.SINGLE_CLASS_LABEL),
        ("table.csv", with_column("none", lambda at: "").encode(), ["--label", "none"], ExitCode.SINGLE_CLASS_LABEL),
        ("table.csv", table().encode(), ["--delimiter", ""], ExitCode.USAGE),
        ("table.csv", table().encode(), ["--delimiter", "ab"], ExitCode.USAGE),
    ],
)
def test_what_cannot_become_a_draft_ends_with_its_code_and_one_line(
    tmp_path: Path, name: str, body: bytes | None, options: list[str], code: ExitCode
) -> None:
    if body is not None:
        (tmp_path / name).write_bytes(body)
    line = fails(run("init", "--from-csv", tmp_path / name, "--out", tmp_path / "study.yaml", *options), code)
    assert CELL not in line
    assert "b'" not in line  # gzip shows the first bytes of what it cannot unpack
    assert not (tmp_path / "study.yaml").exists()


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    fails(run("init", "--from-csv", tmp_path, "--out", tmp_path / "study.yaml"), ExitCode.TABLE_NOT_FOUND)


# --- check

STUDY = """\
name: toy
unit: {name: patient}
label: {column: ill, positive: "yes"}
columns:
  age: {type: integer, min: 0, max: 9}
  dose: {type: continuous, min: 0, max: 5, cells: 16}
  ill: {type: categorical, categories: ["no", "yes"]}
privacy: {epsilon: 1, delta: 1.0e-6, one_way_share: 0.25}
"""


def written(text: str, folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def plan(path: Path, *options: str) -> dict[str, object]:
    result = run("check", path, "--json", *options)
    assert result.exit_code == 0
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", "any number, so one can outweigh all others: agree on rounds.site_units"),
        ("rounds: {site_units: 5000}\n", "at most 5000"),
    ],
)
def test_check_says_how_many_units_a_site_may_state(tmp_path: Path, more: str, says: str) -> None:
    assert plan(written(STUDY + more, tmp_path))["units_that_a_site_may_state"] == says


def test_check_says_that_masks_hide_how_many_units_a_site_states(tmp_path: Path) -> None:
    masked = STUDY.replace("one_way_share: 0.25", "noise_trust: masked")
    says = "any number, since masks hide it: one site can make of every sum what it likes"
    assert plan(written(masked, tmp_path))["units_that_a_site_may_state"] == says


def test_a_good_study_has_a_plan_in_json(tmp_path: Path) -> None:
    path = written(STUDY, tmp_path)
    found = plan(path, "--sites", "9")
    assert found["digest"] == load_study(path).digest()
    assert found["unit"] == "add or remove one patient"
    assert found["guarantee"] == "(1, 1e-06)-DP at each site"
    assert (found["columns_beside_the_label"], found["tables_of_pairs"], found["fine_cells"]) == (2, 1, 2 * (10 + 16))
    one_way, pair = found["noise_of_a_one_way_count_at_a_site"], found["noise_of_a_count_of_pairs_at_a_site"]
    assert isinstance(one_way, float)
    assert isinstance(pair, float)
    # Two one-way tables and one pair table: a unit moves them by 2^0.5 and by 1; both together spend the budget.
    assert epsilon_of(mu=math.sqrt(2 / one_way**2 + 1 / pair**2), delta=1e-6) == pytest.approx(1, rel=1e-6)
    assert 2 / one_way**2 == pytest.approx(0.25 * (2 / one_way**2 + 1 / pair**2), rel=1e-6)
    assert found["noise_of_a_count_of_pairs_summed"] == pytest.approx(3 * pair)


def test_the_plan_says_how_many_units_fill_the_bins_of_every_number(tmp_path: Path) -> None:
    found = plan(written(STUDY, tmp_path), "--sites", "9")
    noise = 3 * float(str(found["noise_of_a_one_way_count_at_a_site"]))
    # Two of the 16 cells of the finest column in each of 8 bins, two classes, two deviations: 2 (2 * 2)^0.5 a bin.
    assert found["units_that_fill_8_bins_of_every_number"] == math.ceil(8 * 2 * noise * 2)
    finer = plan(written(STUDY.replace("cells: 16", "cells: 64"), tmp_path), "--sites", "9")
    assert finer["units_that_fill_8_bins_of_every_number"] == pytest.approx(2 * 8 * 2 * noise * 2, abs=1)
    # What is counted on coarser cells too needs fewer, and what is no number needs none.
    sparse = plan(written(STUDY.replace("cells: 16", "cells: 64, sparse: true"), tmp_path), "--sites", "9")
    assert float(str(sparse["units_that_fill_8_bins_of_every_number"])) < 8 * 2 * noise * 2


def test_the_plan_follows_the_study_and_nothing_else(tmp_path: Path) -> None:
    path = written(STUDY, tmp_path)
    assert plan(path) == plan(path)
    tighter = plan(written(STUDY.replace("epsilon: 1", "epsilon: 0.5"), tmp_path))
    for name in ("noise_of_a_one_way_count_at_a_site", "noise_of_a_count_of_pairs_at_a_site"):
        assert float(str(tighter[name])) > 1.5 * float(str(plan(written(STUDY, tmp_path))[name]))


def test_a_table_of_one_column_and_the_label_has_a_plan(tmp_path: Path) -> None:
    text = STUDY.replace("  dose: {type: continuous, min: 0, max: 5, cells: 16}\n", "")
    assert "tables_of_pairs" not in plan(written(text, tmp_path))


def test_the_plan_of_a_study_with_windows_prices_every_kind_of_table_and_every_measurement() -> None:
    found = plan(Path(__file__).parents[2] / "simulations" / "studies" / "icu.yaml", "--sites", "4")
    study = load_study(Path(__file__).parents[2] / "simulations" / "studies" / "icu.yaml")
    spent = 0.0
    together = math.comb(len(study.channels), 2)
    # A table of two channels has half the noise, so that it moves a release as four others do.
    for name, more in (("pairs", 0), ("couplings", 3 * together), ("dynamics", 0)):
        stddev = float(str(found[f"noise_of_a_count_of_{name}_at_a_site"]))
        spent += (float(str(found[f"tables_of_{name}"])) + more) / stddev**2
    budget = mu_of(epsilon=study.privacy.epsilon, delta=study.privacy.delta) ** 2
    assert spent == pytest.approx(budget * (1 - study.privacy.one_way_share), rel=1e-6)
    shares = [float(share.strip("%")) for share in str(found["budget_by_measurement"]).split(", ")]
    assert len(shares) == study.noise.rounds
    assert shares == sorted(shares)
    assert sum(shares) == pytest.approx(100, abs=2)


@pytest.mark.parametrize("unit", ["patient", "[/b]", "[red]x", "a person"])
def test_a_good_study_has_a_plan_for_people(tmp_path: Path, unit: str) -> None:
    result = run("check", written(STUDY.replace("{name: patient}", f'{{name: "{unit}"}}'), tmp_path))
    assert result.exit_code == 0
    assert "toy: valid" in result.stdout
    assert f"add or remove one {unit}" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("name: toy", "nam: toy", ExitCode.STUDY_INVALID),
        ("name: toy", "name: toy\ndraft: true", ExitCode.STUDY_INVALID),
        ("name: toy", "name: [", ExitCode.STUDY_INVALID),
        ("name: toy", 'name: "to\\ny"', ExitCode.STUDY_INVALID),
        ("epsilon: 1", "epsilon: 0", ExitCode.EPSILON_INVALID),
        ("delta: 1.0e-6", "delta: 2", ExitCode.DELTA_INVALID),
        # Each in its range, and together more noise than there is.
        ("epsilon: 1, delta: 1.0e-6", "epsilon: 1e-9, delta: 1e-9", ExitCode.EPSILON_INVALID),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_bad_study_ends_with_its_code_and_one_line(
    tmp_path: Path, old: str, new: str, code: ExitCode, options: list[str]
) -> None:
    assert old in STUDY
    path = written(STUDY.replace(old, new), tmp_path)
    assert str(path) in fails(run("check", path, *options), code)


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "absent.yaml: no such study file" in fails(run("check", tmp_path / "absent.yaml"), ExitCode.STUDY_NOT_FOUND)
    fails(run("check", tmp_path), ExitCode.STUDY_INVALID)


def test_a_command_that_is_misspelt_ends_with_usage(tmp_path: Path) -> None:
    for arguments in (["chek"], ["check"], ["check", written(STUDY, tmp_path), "--sites", "0"], ["init"]):
        assert run(*arguments).exit_code == ExitCode.USAGE
