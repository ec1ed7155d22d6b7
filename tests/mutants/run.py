"""Whether the tests would see it if differential privacy broke: `python -m tests.mutants.run`.

Each mutant is a small fault in one product file, of a kind that has been found in the field. In a copy of the tree its
fault is made, the tests that should see it run, and at least one must fail. The controls change as much and break
nothing: all these tests must still pass. A mutant that survives shows what no test looks at.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # Started as a file, it would find its own folder only.
    sys.path.insert(0, str(ROOT))

from tests.mutants.mutants import CONTROLS, MUTANTS, Mutant, Patch  # noqa: E402

# What the tests of the mutants load, and what those of the fast ones do.
LIBRARIES = ("torch", "opacus", "sklearn.linear_model", "pandas", "scipy.stats", "mpmath", "dp_accounting")
FAST_LIBRARIES = ("pandas", "scipy.stats", "mpmath", "dp_accounting")
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0")
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant or control.

    verdict: "killed" or "SURVIVED", of a control "passed" or "FLAGGED"; "INVALID" where the tests did not run.
    by: the test that failed; of an invalid one, why it says nothing.
    """

    patch: Patch
    verdict: str
    by: str
    seconds: float


@dataclass(frozen=True)
class Tests:
    """How a run of tests ended: the exit status of pytest, the tests that failed, and what was printed."""

    status: int
    failed: tuple[str, ...]
    printed: str
    seconds: float


class Copy:
    """A copy of the tree, in which product files may be broken, and a process that runs tests there."""

    def __init__(self, folder: Path, libraries: Sequence[str]) -> None:
        """Copy what git tracks, and what it would.

        Args:
            folder: an empty one.
            libraries: that tests need and that take long to load.
        """
        self.folder = folder.resolve()
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            # Before the packages as they are installed, which are those of the tree itself.
            "PYTHONPATH": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.zygote", *libraries],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process; the folder stays."""
        self._zygote.communicate()

    def test(self, nodes: Iterable[str], *, is_broken: bool = True) -> Tests:
        """Run some tests up to the first that fails.

        Args:
            nodes: of pytest.
            is_broken: whether a file is not what it was copied as; its bytecode must then not stay.

        Raises:
            RuntimeError: the process that runs them has ended.
        """
        started = time.monotonic()
        printed = self.folder / "printed.txt"
        order = {
            "arguments": [*_OPTIONS, *dict.fromkeys(nodes)],
            "printed": str(printed),
            "writes_bytecode": not is_broken,
        }
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(order) + "\n")
        self._zygote.stdin.flush()
        answer = self._zygote.stdout.readline()
        if not answer:
            raise RuntimeError("the process that runs the tests has ended")
        # What broke one mutant is not to be tried first on the next.
        shutil.rmtree(self.folder / ".hypothesis" / "examples", ignore_errors=True)
        text = printed.read_text(encoding="utf-8", errors="replace")
        failed = [
            line.removeprefix("FAILED ").split(" - ")[0] for line in text.splitlines() if line.startswith("FAILED ")
        ]
        return Tests(int(answer), tuple(failed), text, time.monotonic() - started)

    @contextmanager
    def broken(self, patch: Patch) -> Iterator[None]:
        """Apply a patch, and take it back.

        Raises:
            ValueError: what it replaces is not there exactly once.
        """
        path = self.folder / patch.file
        whole, text = path.with_name(f"{path.name}.whole"), patched(path.read_text(encoding="utf-8"), patch)
        path.rename(whole)
        try:
            path.write_text(text, encoding="utf-8")
            yield
        finally:
            # With its time of change: bytecode of it is good again.
            whole.replace(path)


def patched(text: str, patch: Patch) -> str:
    """A file's text with a patch applied.

    Raises:
        ValueError: what it replaces is not there exactly once, or it changes nothing.
    """
    times = text.count(patch.old)
    if times != 1 or patch.old == patch.new:
        raise ValueError(f"{patch.name}: replaces what is in {patch.file} {times} times, not once, or changes nothing")
    return text.replace(patch.old, patch.new)


def killers(mutants: Iterable[Mutant]) -> list[str]:
    """The tests that some mutants name."""
    return sorted({node for mutant in mutants for node in mutant.killed_by})


def try_out(copy: Copy, patch: Patch, nodes: Iterable[str]) -> Outcome:
    """Whether some tests see a patch; a mutant's should, a control's should not."""
    with copy.broken(patch):
        tests = copy.test(nodes)
    seen, unseen = ("killed", "SURVIVED") if isinstance(patch, Mutant) else ("FLAGGED", "passed")
    if tests.status == _FAILED and tests.failed:
        return Outcome(patch, seen, tests.failed[0], tests.seconds)
    if tests.status == _PASSED:
        return Outcome(patch, unseen, "", tests.seconds)
    lines = [line for line in tests.printed.splitlines() if line.strip()]
    return Outcome(patch, "INVALID", f"status {tests.status}: {lines[-1] if lines else ''}", tests.seconds)


def _row(outcome: Outcome) -> str:
    patch = outcome.patch
    file, _, test = outcome.by.partition("::")
    by = f"{Path(file).stem}: {test.removeprefix('test_')}" if test else file
    return f"| {outcome.verdict:8} | {patch.name:36} | {patch.twin} | {by} | {outcome.seconds:.0f} s |"


def main(
    *,
    fast: Annotated[bool, typer.Option("--fast", help="The few whose tests take a second or two.")] = False,
    only: Annotated[str | None, typer.Option(help="The mutant or control of this name.")] = None,
) -> None:
    """Break a copy of the code in each of the listed ways, and count how often a test sees it."""
    chosen = [one for one in (*MUTANTS, *CONTROLS) if (one.is_fast or not fast) and only in (None, one.name)]
    mutants = [one for one in chosen if isinstance(one, Mutant)]
    controls = [one for one in chosen if not isinstance(one, Mutant)]
    if not chosen:
        raise typer.BadParameter("no mutant or control of this name")
    nodes = killers(mutants) or killers(MUTANTS)
    libraries = FAST_LIBRARIES if fast else LIBRARIES
    with tempfile.TemporaryDirectory() as folder, closing(Copy(Path(folder), libraries)) as copy:
        whole = copy.test(nodes, is_broken=False)
        typer.echo(f"{len(nodes)} tests without a mutant: {whole.seconds:.0f} s")
        if whole.status != _PASSED:
            typer.echo(whole.printed)
            raise typer.Exit(1)
        outcomes = []
        for patch in chosen:
            outcomes.append(try_out(copy, patch, patch.killed_by if isinstance(patch, Mutant) else nodes))
            typer.echo(_row(outcomes[-1]))
    good = [one.patch for one in outcomes if one.verdict in ("killed", "passed")]
    typer.echo(
        f"score: {sum(one in good for one in mutants)}/{len(mutants)}, "
        f"controls {sum(one in good for one in controls)}/{len(controls)}"
    )
    raise typer.Exit(0 if len(good) == len(chosen) else 1)


if __name__ == "__main__":
    typer.run(main)
