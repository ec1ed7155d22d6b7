"""What one step costs beside the least that it could: `python -m simulations.bench.steps RUN`, a run of `bank`.

Encoding at a site beside reading the same text; a generator's step beside its matrix products; rows on demand beside
the generator's own passes over as many latents; a signature beside Ed25519 of the same bytes; a whole verification
beside the digests of the same files. And the first three beside CTGAN, which promises no privacy, on the same records.
"""

import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import pandas as pd
import torch
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from client.records import parse_text
from common.certificate import Signer, signed_body
from common.commands import Commands
from common.data.encoding import encode_table, make_grids
from common.privacy.signatures import SigningKey
from common.synthesis.synthesizer import Synthesizer
from common.verification import verify_release
from simulations.bench.generator_step import floor_of, step_of
from simulations.bench.timing import best
from simulations.experiment import Run, divide
from simulations.run import resumed

app = Commands()

_CHUNK = 8192
"""Latents at a time."""
_PEER: Final = Path(__file__).parents[1] / "peers" / "ctgan_steps.py"
Timed = tuple[str, Callable[[], object], Callable[[], object]]
"""A step's name, the step, and the least that it could cost."""


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of the scenario bank.")],
    *,
    rows: Annotated[int, typer.Option(min=1, help="Rows on demand.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=1, help="The best counts.")] = 5,
    ctgan: Annotated[
        Path | None, typer.Option(help="Python of an environment with CTGAN; `make .venv-peers/ctgan.stamp` makes one.")
    ] = None,
) -> None:
    """Time the steps of a site, a coordinator, a consumer and an auditor."""
    run = resumed(folder)
    records = parse_text(_read(text := next(iter(divide(run).sites.values()))["table"]), run.study)
    records = records.drop(columns=run.study.unit.key)
    peer = {} if ctgan is None else _ctgan(ctgan, records, rows=rows, repeats=repeats)
    table = Table("step", "takes", "the least", "times that", *(["CTGAN"] if peer else []))
    steps: dict[str, Timed] = {
        "encode": _encoding(run, text),
        "train a thousand": _training(folder),
        "sample": _sampling(folder, rows),
        "sign": _signing(folder),
        "verify": _verifying(folder),
    }
    for key, (name, ours, least) in steps.items():
        took, floor = (best(run, repeats=repeats) for run in (ours, least))
        beside = [_milliseconds(peer[key])] if key in peer else []
        table.add_row(name, _milliseconds(took), _milliseconds(floor), f"{took / floor:.1f}", *beside)
    Console(width=120).print(table)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def _ctgan(python: Path, records: pd.DataFrame, *, rows: int, repeats: int) -> dict[str, float]:
    """Seconds of its steps; it takes no number that is missing, and gets 0 for it."""
    discrete = [name for name, column in records.items() if not pd.api.types.is_numeric_dtype(column)]
    filled = records.fillna(dict.fromkeys(records.columns.difference(discrete), 0))
    with tempfile.TemporaryDirectory() as folder:
        table, names, out = (Path(folder) / name for name in ("table.csv", "discrete.json", "out.json"))
        filled.to_csv(table, index=False)
        names.write_text(json.dumps(discrete))
        words = [python, _PEER, table, names, out, "--rows", rows, "--repeats", repeats]
        subprocess.run(list(map(str, words)), check=True)  # noqa: S603 (our own script)
        found: dict[str, float] = json.loads(out.read_bytes())
    return found


def _read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def _encoding(run: Run, text: str) -> Timed:
    grids = make_grids(run.study.columns)

    def encode() -> object:
        return encode_table(parse_text(_read(text), run.study), grids)

    return f"read and encode {len(_read(text)):,} records at a site", encode, lambda: _read(text)


def _training(folder: Path) -> Timed:
    """Over as many latents as have a thousand together, of the run's own generator and random releases."""
    shape = Synthesizer.load(folder).release.generator.shape
    step = step_of(shape, 1000 // shape.classes, steps=1)
    return "a generator's step with 1,000 latents", step, floor_of(step)


def _sampling(folder: Path, rows: int) -> Timed:
    synthesizer = Synthesizer.load(folder)
    generator = synthesizer.release.generator

    @torch.no_grad()
    def forward() -> None:
        for begin in range(0, rows, _CHUNK):
            size = min(_CHUNK, rows - begin)
            generator(torch.randn(size, generator.shape.noise), torch.zeros(size, dtype=torch.int64))

    return f"{rows:,} rows on demand", lambda: synthesizer.sample(rows, seed=0), forward


def _signing(folder: Path) -> Timed:
    certificate = json.loads((folder / "certificate.json").read_bytes())
    signer, key = Signer(SigningKey.generate(), "simulation"), Ed25519PrivateKey.generate()
    body = signed_body(certificate)
    return "sign a certificate", lambda: signer.sign(certificate), lambda: key.sign(body)


def _verifying(folder: Path) -> Timed:
    files = [folder / name for name in json.loads((folder / "certificate.json").read_bytes())["files"]]

    def digests() -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    return "verify a release", lambda: verify_release(folder), digests


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
