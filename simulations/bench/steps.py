"""What one step costs beside the least that it could: `python -m simulations.bench.steps RUN`, a run that published.

Encoding at a site beside reading the same text; rows on demand beside the generator's own passes over as many latents;
a signature beside Ed25519 of the same bytes; a whole verification beside the digests of the same files.
"""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

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
from simulations.bench.timing import best
from simulations.experiment import divide
from simulations.run import resumed

app = Commands()

_CHUNK = 8192
"""Latents at a time."""


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that published.")],
    *,
    rows: Annotated[int, typer.Option(min=1, help="Rows on demand.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=1, help="The best counts.")] = 5,
) -> None:
    """Time the steps of a site, a consumer and an auditor."""
    table = Table("step", "takes", "the least", "times that")

    def row(name: str, ours: Callable[[], object], least: Callable[[], object]) -> None:
        took, floor = (best(run, repeats=repeats) for run in (ours, least))
        table.add_row(name, f"{1000 * took:,.1f} ms", f"{1000 * floor:,.1f} ms", f"{took / floor:.1f}")

    row(*_encoding(folder))
    row(*_sampling(folder, rows))
    row(*_signing(folder))
    row(*_verifying(folder))
    Console().print(table)


def _encoding(folder: Path) -> tuple[str, Callable[[], object], Callable[[], object]]:
    run = resumed(folder)
    text, grids = next(iter(divide(run).sites.values()))["table"], make_grids(run.study.columns)

    def read() -> pd.DataFrame:
        return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)

    def encode() -> object:
        return encode_table(parse_text(read(), run.study), grids)

    return f"read and encode {len(read()):,} records at a site", encode, read


def _sampling(folder: Path, rows: int) -> tuple[str, Callable[[], object], Callable[[], object]]:
    synthesizer = Synthesizer.load(folder)
    generator = synthesizer.release.generator

    @torch.no_grad()
    def forward() -> None:
        for begin in range(0, rows, _CHUNK):
            size = min(_CHUNK, rows - begin)
            generator(torch.randn(size, generator.shape.noise), torch.zeros(size, dtype=torch.int64))

    return f"{rows:,} rows on demand", lambda: synthesizer.sample(rows, seed=0), forward


def _signing(folder: Path) -> tuple[str, Callable[[], object], Callable[[], object]]:
    certificate = json.loads((folder / "certificate.json").read_bytes())
    signer, key = Signer(SigningKey.generate(), "simulation"), Ed25519PrivateKey.generate()
    body = signed_body(certificate)
    return "sign a certificate", lambda: signer.sign(certificate), lambda: key.sign(body)


def _verifying(folder: Path) -> tuple[str, Callable[[], object], Callable[[], object]]:
    files = [folder / name for name in json.loads((folder / "certificate.json").read_bytes())["files"]]

    def digests() -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    return "verify a release", lambda: verify_release(folder), digests


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
