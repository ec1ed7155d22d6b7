"""Tables as files: what was written comes back, in parts or at once, and a formula is text."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import OutputError
from common.synthesis.tables import TableFile

TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda text: text == text.strip()
)


def table_of(categories: list[str], codes: list[int], numbers: list[int | None]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(categories)),
            "count": pd.array(numbers, dtype="Int64"),
            "real": np.array([np.nan if number is None else number / 8 for number in numbers]),
        }
    )


def write(path: Path, *parts: pd.DataFrame) -> None:
    with TableFile(path, {}) as file:
        for part in parts:
            file.write(part)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    categories=st.lists(TEXTS, min_size=1, max_size=4, unique=True),
    rows=st.lists(st.tuples(st.integers(-1, 0), st.none() | st.integers(-(2**53), 2**53)), min_size=2, max_size=6),
)
def test_what_is_written_comes_back(categories: list[str], rows: list[tuple[int, int | None]], tmp_path: Path) -> None:
    table = table_of(categories, [code for code, _ in rows], [number for _, number in rows])
    parts = table.iloc[:1], table.iloc[1:]
    write(tmp_path / "t.parquet", *parts)
    back = pq.read_table(tmp_path / "t.parquet").to_pandas()
    pd.testing.assert_frame_equal(back, table, check_categorical=False)
    assert list(back["kind"].cat.categories) == categories
    write(tmp_path / "t.csv", *parts)
    text = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    for column in ("count", "real"):
        assert pd.to_numeric(text[column]).tolist() == pytest.approx(
            table[column].astype("float64").tolist(), nan_ok=True, rel=0, abs=0
        )
    kinds = table["kind"].astype(object).where(table["kind"].notna(), "")
    assert [kind.removeprefix("'") for kind in text["kind"]] == [kind.removeprefix("'") for kind in kinds]


def test_a_formula_is_written_as_text_and_a_number_as_it_is(tmp_path: Path) -> None:
    categories = ["=1+2", "+cmd", "-x", "@SUM(A1)", "-5", "+3.5e2", "007", "a=b"]
    write(tmp_path / "t.csv", table_of(categories, list(range(8)), [None] * 8))
    text = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)["kind"].tolist()
    assert text == ["'=1+2", "'+cmd", "'-x", "'@SUM(A1)", "-5", "+3.5e2", "007", "a=b"]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_where_writing_fails_nothing_is_left_and_an_older_file_is(ending: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"t{ending}", table_of(["a"], [0], [1])
    write(path, table)
    before = path.read_bytes()

    def stop() -> None:
        with TableFile(path, {}) as file:
            file.write(table)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop()
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_other_endings_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a name that ends in .csv or .parquet"):
        TableFile(tmp_path / "t.xlsx", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), TableFile(tmp_path / "file" / "t.csv", {}):
        pass
