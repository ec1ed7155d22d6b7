"""Whether a long run grows: `python simulations/bench/soak.py`.

The real coordinator and real sites, ledgers and witnesses in one process, over the smallest study there is. In rounds
of releases every site is charged, seals its answer and is witnessed each time; in rounds of training the generator goes
to and fro.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
import typer

from client.simulated_site import make_site_folder, peers_of
from common.commands import Commands
from common.study import load_study
from server.rounds import Coordinator
from simulations.federation import Engine, credentials_of, run_federation

app = Commands()

Kind = Literal["releases", "training"]
_SITES: Final = ("a", "b")
_STUDY: Final = """\
schema: privshare.study/1
name: soak
unit: {name: person, key: person}
label: {column: ill, positive: "yes"}
columns:
  colour: {type: categorical, categories: [red, green]}
  ill: {type: categorical, categories: ["no", "yes"]}
privacy: {epsilon: 100, delta: 1.0e-5, holdout: 0}
discriminators: {neural: 1}
noise: {rounds: 2, schedule: fixed}
critic: {width: 4, steps: %(releases)d}
rounds: {count: %(training)d, trainers: 2, local_steps: 1, refine_steps: 1}
model: {latent: 2, width: 8, blocks: 1, batch: 8}
"""


@dataclass(frozen=True)
class Sample:
    """What a process holds after a round.

    descriptors: open files. memory: resident, in MB. ledger: bytes of one site's. disk: MB of the run's folder.
    seconds: of processor time since the run began.
    """

    round: int
    descriptors: int
    memory: float
    ledger: int
    disk: float
    seconds: float


def soak(kind: Kind, rounds: int, folder: Path, *, every: int = 1) -> list[Sample]:
    """Run so many rounds of a kind, and look at the process after some of them."""
    path = folder / "study.yaml"
    path.write_text(
        _STUDY % {"releases": rounds if kind == "releases" else 1, "training": rounds if kind == "training" else 2}
    )
    study, random = load_study(path), np.random.default_rng(0)
    sites = []
    for site in _SITES:
        rows = [f"{site}{at},{random.choice(['red', 'green'])},{random.choice(['no', 'yes'])}" for at in range(40)]
        sites.append(
            make_site_folder(
                site, path, study, {"table": "\n".join(["person,colour,ill", *rows])}, private=folder / "private",
                kept=folder / "run", seed=0, peers=peers_of(site, _SITES, study),
            )
        )  # fmt: skip
    began, samples, done = time.process_time(), list[Sample](), 0

    def look(line: dict[str, Any]) -> None:
        nonlocal done
        done += line["step"].startswith("critic-") if kind == "releases" else line["step"] == "round"
        if done % every == 0 and done > (samples[-1].round if samples else 0):
            samples.append(_sample(done, folder / "run", time.process_time() - began))

    coordinator = Coordinator(
        study, folder=folder / "run", run="soak", seed=0, credentials=credentials_of(_SITES, seed=0),
        device=torch.device("cpu"), on_step=look,
    )  # fmt: skip
    run_federation(sites, lambda exchange: void(coordinator.run(exchange)), Engine("process", "cpu", 1))
    return samples


def void(_: object) -> None:
    """Of a conduct, whose outcome is of no interest."""


def _sample(number: int, run: Path, seconds: float) -> Sample:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    disk = sum(file.stat().st_size for file in run.glob("**/*") if file.is_file())
    ledger = (run / "ledger" / f"{_SITES[0]}.jsonl").stat().st_size
    return Sample(number, len(list(Path("/proc/self/fd").iterdir())), memory / 1000, ledger, disk / 1e6, seconds)


@app.command()
def main(
    kind: Annotated[Kind, typer.Argument(help="Rounds of releases, or of training.")],
    *,
    rounds: Annotated[int, typer.Option(help="How many.")] = 1000,
) -> None:
    """What the process holds, every fifth of the rounds."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        samples = soak(kind, rounds, Path(folder), every=max(1, rounds // 5))
    typer.echo(
        "| round | open files | memory, MB | ledger, bytes | run folder, MB | processor, s |\n|---|---|---|---|---|---|"
    )
    for one in samples:
        held = f"{one.descriptors} | {one.memory:.0f} | {one.ledger:,} | {one.disk:.1f}"
        typer.echo(f"| {one.round:,} | {held} | {one.seconds:.0f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
