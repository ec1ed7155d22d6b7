"""The study files that come with the project: they load, and the public tables they describe fit them."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.data.encoding import encode_table, make_grids
from common.data.schema import CategoricalColumn, FileLayout, check_columns, parse_table
from common.study import Study, load_study

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"


@dataclass(frozen=True)
class Published:
    """What the publisher says of a data set."""

    folder: str
    files: tuple[str, ...]
    rows: int
    units: int


# Origin: the pages of data sets 2, 45, 222 and 296 of the UCI Machine Learning Repository; 71,518 patients from Strack
# et al. 2014. The names of the studies are those of their files.
PUBLISHED = {
    "adult": Published("adult", ("adult.data", "adult.test"), rows=48_842, units=48_842),
    "diabetes130": Published("diabetes130", ("diabetic_data.csv",), rows=101_766, units=71_518),
    "heart-disease": Published(
        "heart-disease-uci",
        tuple(f"processed.{one}.data" for one in ("cleveland", "hungarian", "switzerland", "va")),
        rows=920,
        units=920,
    ),
    "bank-marketing": Published("bank-marketing", ("bank-full.csv",), rows=45_211, units=45_211),
}


def find_files(real_data: Path, name: str) -> list[Path]:
    """The files of a data set, plain or packed; the test is skipped when one is absent."""
    found = []
    for file in PUBLISHED[name].files:
        candidates = (real_data / PUBLISHED[name].folder / file, real_data / PUBLISHED[name].folder / f"{file}.gz")
        present = [path for path in candidates if path.is_file()]
        if not present:
            pytest.skip(f"no real data: {candidates[0]} is absent")
        found.append(present[0])
    return found


def read_text(files: list[Path], layout: FileLayout) -> pd.DataFrame:
    """A table of text, as the layout says."""
    parts = [
        pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            sep=layout.delimiter,
            header=None if layout.header else 0,
            names=list(layout.header) if layout.header else None,
            comment=layout.comment,
            skipinitialspace=True,
        )
        for path in files
    ]
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Real:
    """A study, its real table as text, and the same table typed."""

    study: Study
    text: pd.DataFrame
    typed: pd.DataFrame


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def real(request: pytest.FixtureRequest, real_data: Path) -> Real:
    name: str = request.param
    study = load_study(STUDIES / f"{name}.yaml")
    text = read_text(find_files(real_data, name), study.table)
    typed = parse_table(text, study.columns, missing_markers=study.table.missing_markers, unit_key=study.unit.key)
    return Real(study, text, typed)


def used_columns(study: Study) -> list[str]:
    return [*([study.unit.key] if study.unit.key else []), *study.columns]


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_file_loads(path: Path) -> None:
    study = load_study(path)
    assert study.features
    assert len(study.label_values) >= 2


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_study_of_a_public_table_carries_the_name_of_its_file(name: str) -> None:
    assert load_study(STUDIES / f"{name}.yaml").name == name


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_delta_is_below_one_over_the_published_number_of_units(name: str) -> None:
    assert load_study(STUDIES / f"{name}.yaml").privacy.delta < 1 / PUBLISHED[name].units


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_no_category_holds_the_comment_sign_or_is_a_missing_marker(name: str) -> None:
    study = load_study(STUDIES / f"{name}.yaml")
    for column in study.columns.values():
        if isinstance(column, CategoricalColumn):
            raw = {*column.categories, *(member for group in (column.groups or {}).values() for member in group)}
            assert not raw & set(study.table.missing_markers)
            assert study.table.comment is None or not any(study.table.comment in value for value in raw)


def test_icd_9_codes_fall_into_the_groups_of_strack_et_al() -> None:
    column = load_study(STUDIES / "diabetes130.yaml").columns["diag_1"]
    # Strack et al. 2014, table 2: both ends of each range, the symptom beside it, and codes that are in none.
    expected = {
        "390": "circulatory", "427.31": "circulatory", "459": "circulatory", "785": "circulatory",
        "460": "respiratory", "519": "respiratory", "786": "respiratory",
        "520": "digestive", "579": "digestive", "787": "digestive",
        "250": "diabetes", "250.83": "diabetes",
        "800": "injury", "999": "injury",
        "710": "musculoskeletal", "739": "musculoskeletal",
        "580": "genitourinary", "629": "genitourinary", "788": "genitourinary",
        "140": "neoplasms", "239": "neoplasms",
        "8": "other", "038": "other", "249": "other", "251": "other", "276": "other", "682": "other", "789": "other",
        "V57": "other", "E909": "other",
    }  # fmt: skip
    typed = parse_table(pd.DataFrame({"diag_1": list(expected)}, dtype="str"), {"diag_1": column})
    assert typed["diag_1"].tolist() == list(expected.values())


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        # IDs_mapping.csv: the numbers of each of its three tables.
        ("admission_type_id", [*range(1, 9)]),
        ("discharge_disposition_id", [*range(1, 31)]),
        ("admission_source_id", [*range(1, 16), *range(17, 27)]),
    ],
)
def test_every_number_of_the_mapping_has_a_group_and_the_next_one_has_none(name: str, numbers: list[int]) -> None:
    column = load_study(STUDIES / "diabetes130.yaml").columns[name]
    text = pd.DataFrame({name: [str(number) for number in numbers]}, dtype="str")
    assert parse_table(text, {name: column})[name].notna().all()
    assert isinstance(column, CategoricalColumn)
    members = [member for group in (column.groups or {}).values() for member in group]
    listed = [
        number for member in members for number in range(int(member.split("-")[0]), int(member.split("-")[-1]) + 1)
    ]
    assert sorted(listed) == numbers


def test_a_real_table_has_the_published_number_of_rows_and_units(real: Real) -> None:
    published = PUBLISHED[real.study.name]
    assert len(real.text) == len(real.typed) == published.rows
    if real.study.unit.key:
        assert real.typed[real.study.unit.key].nunique() == published.units


def test_a_real_table_has_the_columns_of_the_study_and_those_it_ignores_and_no_others(real: Real) -> None:
    check_columns(real.text, used_columns(real.study), list(real.study.ignore))
    assert sorted(real.text.columns) == sorted([*used_columns(real.study), *real.study.ignore])


def test_the_comment_sign_stands_at_the_start_of_a_line_only(real_data: Path) -> None:
    # pandas cuts a line at the sign wherever it stands: inside a line it would take cells away.
    sign = load_study(STUDIES / "adult.yaml").table.comment
    assert sign is not None
    for path in find_files(real_data, "adult"):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert not any(sign in line.lstrip()[1:] for line in raw.decode("utf-8").splitlines())


def test_missing_values_stand_where_the_marker_was_and_nowhere_else(real: Real) -> None:
    markers = {"", *real.study.table.missing_markers}
    for name in real.study.columns:
        assert (real.typed[name].isna() == real.text[name].str.strip().isin(markers)).all(), name


def test_encode_then_decode_keeps_every_dtype_and_every_cell(real: Real) -> None:
    grids = make_grids(real.study.columns)
    cells = encode_table(real.typed, grids)
    generator = np.random.default_rng(7)
    decoded = pd.DataFrame({grid.name: grid.decode(cells[:, at], generator) for at, grid in enumerate(grids)})
    assert len(decoded) == PUBLISHED[real.study.name].rows
    pd.testing.assert_series_equal(decoded.dtypes, real.typed[list(real.study.columns)].dtypes)
    assert (encode_table(decoded, grids) == cells).all()


@pytest.mark.parametrize(("name", "column", "value"), [("bank-marketing", "pdays", -1), ("adult", "capital-gain", 0)])
def test_the_value_that_stands_for_nothing_has_a_cell_of_its_own(name: str, column: str, value: int) -> None:
    grid = make_grids({column: load_study(STUDIES / f"{name}.yaml").columns[column]})[0]
    cells = grid.encode(pd.Series([value, value + 1], dtype="int64"))
    assert cells[0] != cells[1]
    assert grid.decode(np.repeat(cells[:1], 100), np.random.default_rng(7)).eq(value).all()
