"""A whole run over moments with a zone and whole numbers beyond 2^53: what is published obeys its own schema."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner, Result

from client.records import parse_text, read_text
from common.data.schema import DatetimeColumn
from common.errors import ExitCode
from common.study import load_study
from common.synthesis.cli import app as consumer
from simulations.run import app
from tests.common.data.columns import moment_column

FAR = 2**60
STUDY = f"""\
schema: privshare.study/1
name: types
unit: {{name: stay}}
label: {{column: outcome, positive: bad}}
columns:
  admitted: {{type: datetime, min: 2020-03-01, max: 2020-11-30, timezone: Europe/Berlin, cells: 16}}
  seen:     {{type: datetime, min: 2020-10-24, max: 2020-10-27, unit: hour, timezone: Europe/Berlin, missing: true}}
  left:     {{type: datetime, min: 2020-03-01, max: 9999-12-31, special: [9999-12-31], cells: 8}}
  account:  {{type: integer, min: {FAR}, max: {FAR + 99_999}, cells: 16, missing: true}}
  outcome:  {{type: categorical, categories: [good, bad]}}
privacy: {{epsilon: 100, delta: 1.0e-5, holdout: 0.2}}
rounds: {{count: 2, trainers: 2, local_steps: 2, refine_steps: 3}}
model: {{latent: 4, width: 8, blocks: 1, batch: 16, max_bins: 4}}
gates: {{membership_advantage: null, attribute_residual: null}}
"""
SEEN = moment_column(min="2020-10-24", max="2020-10-27", unit="hour", timezone="Europe/Berlin")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for a busy core make a tiny run fifty times slower."""
    with threadpool_limits(1):
        yield


def stays(rows: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(3)
    days = pd.date_range("2020-03-01", "2020-11-30").strftime("%Y-%m-%d").to_numpy()
    hours = SEEN.write(SEEN.from_whole(random.integers(0, 74, rows), random.random(rows) < 0.1))
    left = np.where(random.random(rows) < 0.2, "9999-12-31", random.choice(days, rows))
    account = (FAR + random.integers(0, 100_000, rows)).astype(str).astype(object)
    account[random.random(rows) < 0.1] = ""
    return pd.DataFrame(
        {
            "admitted": random.choice(days, rows),
            "seen": hours,
            "left": left,
            "account": account,
            "outcome": random.choice(["good", "bad"], rows, p=[0.7, 0.3]),
        }
    )


def simulate(folder: Path, table: pd.DataFrame, *options: str, study: str = STUDY) -> Result:
    (folder / "study.yaml").write_text(study, encoding="utf-8")
    table.to_csv(folder / "table.csv", index=False)
    asked = ["--study", str(folder / "study.yaml"), "--data", str(folder / "table.csv"), "--out", str(folder / "run")]
    return CliRunner().invoke(app, [*asked, "--sites", "2", "--threads", "1", "--seed", "1", "--json", *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = tmp_path_factory.mktemp("types")
    result = simulate(inputs, stays(), "--evaluation", "quick")
    assert result.exit_code == 0, result.output
    return inputs / "run"


def test_what_is_published_is_read_by_its_own_schema_and_within_its_bounds(folder: Path) -> None:
    study = load_study(folder / "study.lock.yaml")
    table = parse_text(read_text(folder / "synthetic.csv", study), study)
    assert [str(dtype) for dtype in table.dtypes] == [
        "datetime64[ms, Europe/Berlin]",
        "datetime64[ms, Europe/Berlin]",
        "datetime64[ms]",
        "Int64",
        "category",
    ]
    for name in ("admitted", "seen", "left"):
        column = study.columns[name]
        assert isinstance(column, DatetimeColumn)
        numbers = column.to_whole(table[name])
        assert ((numbers >= 0) & (numbers <= column.max)).all()
        assert len(set(numbers)) > 5
    account = table["account"].dropna()
    assert account.between(FAR, FAR + 99_999).all()
    assert (account % 128 != 0).mean() > 0.9
    assert table["seen"].isna().any()
    assert (table["left"] == pd.Timestamp("9999-12-31")).any()
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert "violations" in json.dumps(evaluation)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_on_demand_obey_conditions_on_moments(folder: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"rows.{ending}"
    asked = ["--where", "admitted>=2020-07-01", "--where", "seen!=", "--where", f"account>{FAR + 50_000}"]
    result = CliRunner().invoke(consumer, ["sample", str(folder), "-n", "300", *asked, "--seed", "1", "-o", str(out)])
    assert result.exit_code == 0, result.output
    study = load_study(folder / "study.lock.yaml")
    rows = parse_text(read_text(out, study), study) if ending == "csv" else pq.read_table(out).to_pandas()
    assert len(rows) == 300
    assert str(rows["admitted"].dtype) == "datetime64[ms, Europe/Berlin]"
    assert (rows["admitted"] >= pd.Timestamp("2020-07-01", tz="Europe/Berlin")).all()
    assert rows["seen"].notna().all()
    assert (rows["account"] > FAR + 50_000).all()


@pytest.mark.parametrize(
    ("name", "cell", "code"),
    [
        ("admitted", "01.04.2020", ExitCode.NOT_A_TIME),
        ("admitted", "2020-04-01T12:00", ExitCode.NOT_A_TIME),
        ("left", "2020-04-01T00:00Z", ExitCode.NOT_A_TIME),
        ("seen", "2020-10-25T02:00", ExitCode.NOT_A_TIME),
        ("admitted", "2021-04-01", ExitCode.OUT_OF_BOUNDS),
        ("account", str(FAR + 100_000), ExitCode.OUT_OF_BOUNDS),
        ("account", f"{FAR + 5}.5", ExitCode.NOT_A_NUMBER),
    ],
)
def test_a_value_that_breaks_its_columns_rule_ends_the_run_with_one_line(
    tmp_path: Path, name: str, cell: str, code: ExitCode
) -> None:
    table = stays()
    table.loc[7, name] = cell
    result = simulate(tmp_path, table)
    assert result.exit_code == code
    assert cell not in result.output
    assert name in result.output
    assert not (tmp_path / "run" / "synthetic.csv").exists()
