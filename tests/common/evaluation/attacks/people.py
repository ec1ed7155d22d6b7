"""People with records, some with windows, for tests of attacks on a synthetic table."""

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency

from common.data.schema import parse_table
from common.data.windows import WindowedTable
from common.evaluation.attacks.residual import Residual
from common.evaluation.figures import Figure, Population
from common.study import Study, parse_study

_COLUMNS = {
    "sex": {"type": "categorical", "categories": ["f", "m"]},
    "ward": {"type": "categorical", "categories": ["a", "b", "c", "d", "e"], "missing": True},
    "balance": {"type": "continuous", "min": -1e5, "max": 1e5, "scale": "asinh", "scale_unit": 100, "decimals": 2},
    "amount": {"type": "continuous", "min": 0, "max": 1e6, "scale": "log", "decimals": 2, "missing": True},
    "age": {"type": "integer", "min": 18, "max": 100},
    "ill": {"type": "categorical", "categories": ["no", "yes"]},
}


def make_study(columns: dict[str, object] | None = None, **more: object) -> Study:
    return parse_study(
        {
            "name": "toy",
            "label": {"column": "ill", "positive": "yes"},
            "columns": columns or _COLUMNS,
            "privacy": {"epsilon": 1, "delta": 1e-6},
            **more,
        },
        source="test",
    )


STUDY = make_study()
WINDOWED = make_study(
    {name: _COLUMNS[name] for name in ("sex", "age", "ill")},
    unit={"key": "who"},
    windows={
        "layout": "grid",
        "length": 4,
        "step": 1,
        "start": 0,
        "time": {"column": "hour"},
        "channels": {
            "pulse": {"type": "continuous", "min": 0, "max": 200, "missing": True},
            "state": {"type": "categorical", "categories": ["awake", "asleep"], "missing": True},
        },
    },
)


def draw(units: int, seed: int, *, records: int = 3) -> Population:
    """Units with one to `records` records. Sex and age are the unit's; the older are ill more often and owe more."""
    random = np.random.default_rng(seed)
    unit = np.repeat(np.arange(units), random.integers(1, records + 1, units))
    age = random.integers(18, 101, units)[unit]
    balance = 20 * (60 - age) + 800 * random.normal(size=len(unit))
    amount = np.where(random.random(len(unit)) < 0.1, np.nan, random.lognormal(4, 1, len(unit)))
    text = pd.DataFrame(
        {
            "sex": np.where(random.random(units) < 0.4, "m", "f")[unit],
            "ward": random.choice(["a", "b", "c", "d", "e", ""], len(unit), p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05]),
            "balance": [f"{value:.2f}" for value in balance],
            "amount": ["" if np.isnan(value) else f"{value:.2f}" for value in amount],
            "age": age.astype(str),
            "ill": np.where(random.random(len(unit)) < (age - 15) / 250, "yes", "no"),
        }
    )
    return Population(WindowedTable.without_windows(parse_table(text, STUDY.columns)), unit)


def draw_windowed(units: int, seed: int) -> Population:
    """Units whose columns tell little apart, and whose pulse tells them all apart."""
    random = np.random.default_rng(seed)
    text = pd.DataFrame(
        {
            "sex": random.choice(["f", "m"], units),
            "age": (10 * random.integers(2, 10, units)).astype(str),
            "ill": random.choice(["no", "yes"], units, p=[0.8, 0.2]),
        }
    )
    pulse = 80 + 10 * random.normal(size=(units, 1)) + 5 * random.normal(size=(units, 4))
    values = np.stack([pulse, random.integers(0, 2, (units, 4)).astype(float)], axis=2)
    values[random.random(values.shape) < 0.1] = np.nan
    table = WindowedTable(parse_table(text, WINDOWED.columns), values, np.full(units, 4))
    return Population(table, np.arange(units))


def hand_made(study: Study, **columns: list[str]) -> Population:
    """One record a unit, from text."""
    table = WindowedTable.without_windows(parse_table(pd.DataFrame(columns, dtype="str"), study.columns))
    return Population(table, np.arange(len(table.records)))


def stack(*tables: WindowedTable) -> WindowedTable:
    """One below the other."""
    return WindowedTable(
        pd.concat([table.records for table in tables], ignore_index=True),
        np.concatenate([table.values for table in tables]),
        np.concatenate([table.lengths for table in tables]),
    )


def shuffle_columns(table: WindowedTable, seed: int) -> WindowedTable:
    """Each column and channel in an order of its own."""
    random = np.random.default_rng(seed)
    rows = len(table.records)
    columns = {
        name: values.iloc[random.permutation(rows)].reset_index(drop=True) for name, values in table.records.items()
    }
    channels = [table.values[random.permutation(rows), :, at] for at in range(table.values.shape[2])]
    values = np.stack(channels, axis=2) if channels else table.values
    return WindowedTable(pd.DataFrame(columns), values, table.lengths)


def known(figure: Figure) -> tuple[float, float, float]:
    """Value, low and high of a figure that could be measured."""
    assert figure.value is not None
    assert figure.low is not None
    assert figure.high is not None
    assert figure.reason is None
    return figure.value, figure.low, figure.high


def chance_of(residual: Residual) -> float:
    """How often success rates that differ so much come about where members are like controls (chi-squared test)."""
    won = [(known(side)[0] * (side.n or 0), side.n or 0) for side in (residual.members, residual.controls)]
    table = np.rint([[successes, tries - successes] for successes, tries in won])
    if not table.sum(axis=0).all():
        return 1.0
    return float(chi2_contingency(table, correction=False).pvalue)
