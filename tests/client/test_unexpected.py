"""An error that nobody foresaw: its text may hold a cell, so its kind alone is told, and that to nobody but the log."""

import logging
from pathlib import Path

import pandas as pd
import pytest

import client.site
from common.errors import ExitCode
from common.privacy.mechanism import CountMechanism
from common.wire.messages import refusal
from tests.client.homes import MEASUREMENTS, Home, forbidden
from tests.logs import whole

CELL = "GEHEIM-4711"


def reading_fails(path: Path, study: object) -> pd.DataFrame:
    """As pandas does it: the text holds the cell."""
    return pd.DataFrame({"age": pd.to_numeric(pd.Series([CELL]))})


def summing_fails(*_: object) -> None:
    """A fault behind the table's checks, and the error that it was made from."""
    try:
        float(CELL)
    except ValueError as error:
        raise KeyError(CELL) from error


@pytest.mark.parametrize(("where", "kind"), [("read_records", "ValueError"), ("exact_sum", "KeyError")])
def test_an_error_that_nobody_foresaw_is_told_by_its_kind_alone(
    home: Home,
    where: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if where == "read_records":
        monkeypatch.setattr(client.site, "read_records", reading_fails)
    else:
        monkeypatch.setattr(CountMechanism, "exact_sum", summing_fails)
    site = home.open(forbidden())
    kinds = ("one_way", "tables", "monitor") if where == "exact_sum" else MEASUREMENTS
    with caplog.at_level(logging.DEBUG):
        bodies = [site.handle(home.ask(one).encode()) for one in kinds]
    assert bodies == [refusal("north", ExitCode.INTERNAL)] * len(kinds)
    assert [record.getMessage() for record in caplog.records] == [f"site=north event=failed error={kind}"] * len(kinds)
    # With all that a formatter could make of it.
    log = "\n".join(map(whole, caplog.records))
    printed = capfd.readouterr()
    assert CELL not in log + printed.out + printed.err
    assert home.charged == []
