"""How fast a release is: `python simulations/bench/release.py`.

A whole release in cells per second: sums, a signed entry of the ledger on disk, exact rounded Gaussians from a
cryptographic keystream. Beside it numpy's Gaussian of the same length, which is neither exact nor secret. Then two
parts of a release on their own: checked sums of counts, and entries of the ledger.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from common.commands import Commands
from common.privacy.accountants import GdpAccountant
from common.privacy.ledger import Asset, Charge, Ledger
from common.privacy.mechanism import Contributions, CountMechanism
from common.privacy.noise import GaussianNoise
from common.privacy.signatures import SigningKey
from simulations.bench.timing import best

app = Commands()


@app.command()
def main(
    *,
    cells: Annotated[int, typer.Option(help="Length of a release.")] = 1_000_000,
    units: Annotated[int, typer.Option(help="Units whose counts are checked and added up.")] = 50_000,
    tables: Annotated[int, typer.Option(help="Tables that each unit is in.")] = 20,
    entries: Annotated[int, typer.Option(help="Entries of the ledger.")] = 500,
    repeats: Annotated[int, typer.Option(help="The best counts.")] = 3,
) -> None:
    """Time noise, checked sums and the ledger."""
    random = np.random.default_rng(0)
    table = Table("what", "figure")
    with tempfile.TemporaryDirectory() as folder:
        ours = best(_releasing(cells, _ledger_in(Path(folder))), repeats=repeats)
    plain = best(lambda: np.rint(random.normal(0, 1000.0, cells)).astype(np.int64), repeats=repeats)
    table.add_row("a release", f"{cells / ours:,.0f} cells/s")
    table.add_row("numpy's Gaussian, rounded", f"{cells / plain:,.0f} cells/s ({ours / plain:.1f} times that)")
    counted = best(_counting(units, tables, random), repeats=repeats)
    table.add_row(f"checked sums of {tables} tables", f"{units * tables / counted:,.0f} hits/s")
    milliseconds = sorted(_append(entries))
    table.add_row(
        f"ledger, {entries} charges",
        f"median {median(milliseconds):.1f} ms, 99th {quantiles(milliseconds, n=100)[98]:.1f} ms",
    )
    Console().print(table)


def _ledger_in(folder: Path) -> Ledger:
    asset = Asset("site", "rows", "", GdpAccountant(), 1.0)
    return Ledger(folder / "ledger.jsonl", asset=asset, study="0" * 64, bound=1.0, key=SigningKey.generate())


def _releasing(cells: int, ledger: Ledger) -> Callable[[], object]:
    """Releases of nobody's counts, each under another name."""
    mechanism, noise, names = CountMechanism(np.array([0, cells]), unit_weight=1), GaussianNoise(), itertools.count()
    nobody = Contributions(np.zeros(0, np.int64), np.zeros((0, 1), np.int64), np.zeros(0, np.int64))
    event = mechanism.plan(spend=1e-6, account="train", noise=noise)

    def release() -> np.ndarray:
        name = f"run/{next(names)}"
        return mechanism.release([nobody], event=event, request=name, request_digest="", ledger=ledger, noise=noise)

    return release


def _counting(units: int, tables: int, random: np.random.Generator) -> Callable[[], object]:
    bins = 50
    mechanism = CountMechanism(np.arange(tables + 1) * bins, unit_weight=1)
    indices = random.integers(bins, size=(units, tables)) + np.arange(tables) * bins
    part = Contributions(np.arange(units), indices, np.ones(units, dtype=np.int64))
    return lambda: mechanism.exact_sum([part])


def _append(entries: int) -> list[float]:
    """Milliseconds of wall time of each charge: the disk is what is measured."""
    mechanism = CountMechanism(np.array([0, 4]), unit_weight=1)
    event = mechanism.plan(spend=1 / (2 * entries), account="train", noise=GaussianNoise())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = _ledger_in(Path(folder))
        for number in range(entries):
            start = time.perf_counter()
            ledger.authorise(Charge(f"run/{number}", "0" * 64, event))
            found.append(1000 * (time.perf_counter() - start))
    return found


if __name__ == "__main__":
    app()
