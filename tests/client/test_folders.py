"""Folders of CSV files, one for each entity."""

import gzip
from pathlib import Path

import pandas as pd
import pytest

from client.folders import CsvFolder
from common.errors import ExitCode, SchemaError


def read(folder: Path, columns: list[str], within: dict[str, list[int | str]] | None = None) -> pd.DataFrame:
    pieces = list(CsvFolder(folder, rows=2).read("events", columns, within=within))
    assert max(map(len, pieces)) <= 2
    return pd.concat(pieces, ignore_index=True)


def test_columns_are_found_whatever_their_case_and_cells_are_text(tmp_path: Path) -> None:
    text = 'ID,VALUE,NOTE\n1,007,"a, ""b""\nc"\n2,,NA\n3,1.50,\n'
    (tmp_path / "EVENTS.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert CsvFolder(tmp_path, rows=2).columns("events") == ["id", "value", "note"]
    table = read(tmp_path, ["note", "value"])
    assert table.to_dict("list") == {"note": ['a, "b"\nc', "NA", ""], "value": ["007", "", "1.50"]}
    assert set(map(str, table.dtypes)) == {"str"}


def test_rows_are_kept_by_columns_that_need_not_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("id,item,by\n1,7,x\n2,8,x\n3,7,y\n4,70,x\n")
    assert read(tmp_path, ["id"], {"item": [7], "by": ["x", "z"]})["id"].tolist() == ["1"]
    assert read(tmp_path, ["id"], {"item": []})["id"].tolist() == []


def test_a_file_without_rows_is_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("id,item\n")
    assert list(read(tmp_path, ["item"]).columns) == ["item"]


def test_a_column_that_is_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(b"id,unit\n1,\xb0C\n")
    assert read(tmp_path, ["id"])["id"].tolist() == ["1"]
    with pytest.raises(SchemaError, match="not a table of delimited UTF-8 text"):
        read(tmp_path, ["unit"])


@pytest.mark.parametrize(
    ("text", "said", "code"),
    [
        (None, "EVENTS.csv: no such table", ExitCode.TABLE_NOT_FOUND),
        ("", "events.csv: the table is empty, not even a header", ExitCode.TABLE_EMPTY),
        ("key,item\n1,secret\n", "events.csv: id: no such column", ExitCode.COLUMN_MISSING),
        ("id,item\n1,2\nsecret\n", "events.csv: not a table of delimited UTF-8 text", ExitCode.TABLE_UNREADABLE),
        ("id,item\n1,2,secret\n", "events.csv: not a table of delimited UTF-8 text", ExitCode.TABLE_UNREADABLE),
    ],
)
def test_what_is_no_such_table_is_refused_and_no_cell_told(
    tmp_path: Path, text: str | None, said: str, code: ExitCode
) -> None:
    if text is not None:
        (tmp_path / "events.csv").write_text(text)
    with pytest.raises(SchemaError, match=said) as caught:
        read(tmp_path, ["id"])
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_a_file_that_is_packed_badly_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(b"id,item\n" + b"1,2\n" * 100_000)
    (tmp_path / "events.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(SchemaError, match="not a table of delimited UTF-8 text"):
        read(tmp_path, ["id"])
