"""Whether the tests would see it if differential privacy broke: `python -m tests.mutants.run`.

Each mutant is a small fault in one product file, of a kind that has been found in the field. In a copy of the tree its
fault is made, the tests that should see it run, and at least one must fail. The controls change as much and break
nothing: all these tests must still pass. A mutant that survives shows what no test looks at.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # Started as a file, it would find its own folder only.
    sys.path.insert(0, str(ROOT))

from tests.mutants.mutants import CONTROLS, MUTANTS, Mutant, Patch  # noqa: E402

PACKAGES = ("client", "common", "server", "simulations")
_SECONDS = 1200  # of one run of tests; a mutant that hangs is no mutant
_PASSED, _FAILED = 0, 1

Verdict = Literal["killed", "SURVIVED", "passed", "FLAGGED", "INVALID"]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant or control.

    verdict: "killed" and "passed" are as they should be.
    by: the test that failed; of an invalid one, why it says nothing.
    """

    patch: Patch
    verdict: Verdict
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
    """A copy of the tree, in which product files may be broken."""

    def __init__(self, folder: Path) -> None:
        """Copy what git tracks, and what it would.

        Raises:
            RuntimeError: python in there would import the packages from elsewhere.
        """
        self.folder = folder.resolve()
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            # Before the packages as they are installed, which are those of the tree itself.
            "PYTHONPATH": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }
        self._check_imports()

    def _check_imports(self) -> None:
        code = f"import {', '.join(PACKAGES)}; print(*(one.__path__[0] for one in ({', '.join(PACKAGES)})), sep='\\n')"
        found = self._python("-c", code).stdout.split()
        if found != [str(self.folder / name) for name in PACKAGES]:
            raise RuntimeError(f"the packages would be imported from {found}, not from the copy")

    def _python(self, *arguments: str, writes_bytecode: bool = True) -> subprocess.CompletedProcess[str]:
        environment = self._environment if writes_bytecode else {**self._environment, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
        )

    def test(self, nodes: Iterable[str], *, is_broken: bool = True) -> Tests:
        """Run some tests up to the first that fails.

        Args:
            nodes: of pytest.
            is_broken: whether a file is not what it was copied as; its bytecode must then not stay.
        """
        started = time.monotonic()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0"]
        try:
            done = self._python("-m", "pytest", *options, *dict.fromkeys(nodes), writes_bytecode=not is_broken)
        except subprocess.TimeoutExpired:
            return Tests(-1, (), "the tests did not end", time.monotonic() - started)
        # What broke one mutant is not to be tried first on the next.
        shutil.rmtree(self.folder / ".hypothesis" / "examples", ignore_errors=True)
        failed = [
            line.removeprefix("FAILED ").split(" - ")[0]
            for line in done.stdout.splitlines()
            if line.startswith("FAILED ")
        ]
        return Tests(done.returncode, tuple(failed), done.stdout, time.monotonic() - started)

    @contextmanager
    def broken(self, *patches: Patch) -> Iterator[None]:
        """Apply patches to different files, and take them back.

        Raises:
            ValueError: what a patch replaces is not there exactly once.
        """
        texts = {
            patch.file: patched((self.folder / patch.file).read_text(encoding="utf-8"), patch) for patch in patches
        }
        if len(texts) < len(patches):
            raise ValueError("patches: expected one a file")
        whole = {self.folder / name: self.folder / f"{name}.whole" for name in texts}
        for path, kept in whole.items():
            path.rename(kept)
        try:
            for name, text in texts.items():
                (self.folder / name).write_text(text, encoding="utf-8")
            yield
        finally:
            # With its time of change: bytecode of it is good again.
            for path, kept in whole.items():
                kept.replace(path)


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


def try_mutant(copy: Copy, mutant: Mutant) -> Outcome:
    """Whether a mutant's tests see it."""
    with copy.broken(mutant):
        tests = copy.test(mutant.killed_by)
    if tests.status == _FAILED and tests.failed:
        return Outcome(mutant, "killed", tests.failed[0], tests.seconds)
    if tests.status == _PASSED:
        return Outcome(mutant, "SURVIVED", "", tests.seconds)
    return Outcome(mutant, "INVALID", _end_of(tests), tests.seconds)


def try_controls(copy: Copy, controls: Sequence[Patch], nodes: Sequence[str]) -> list[Outcome]:
    """Whether tests pass with all controls at once; where they do not, which of the controls they flag."""
    with copy.broken(*controls):
        tests = copy.test(nodes)
    if tests.status == _PASSED:
        return [Outcome(control, "passed", "", tests.seconds / len(controls)) for control in controls]
    if len(controls) > 1:
        return [outcome for control in controls for outcome in try_controls(copy, [control], nodes)]
    if tests.status == _FAILED and tests.failed:
        return [Outcome(controls[0], "FLAGGED", tests.failed[0], tests.seconds)]
    return [Outcome(controls[0], "INVALID", _end_of(tests), tests.seconds)]


def _end_of(tests: Tests) -> str:
    lines = [line for line in tests.printed.splitlines() if line.strip()]
    return f"pytest ended with {tests.status}: {lines[-1] if lines else 'nothing printed'}"


def _row(outcome: Outcome) -> str:
    patch = outcome.patch
    by = outcome.by.rpartition("/")[2].replace(".py::test_", ": ")
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
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        whole = copy.test(nodes, is_broken=False)
        typer.echo(f"{len(nodes)} tests without a mutant: {whole.seconds:.0f} s")
        if whole.status != _PASSED:
            typer.echo(whole.printed)
            raise typer.Exit(1)
        outcomes = []
        for mutant in mutants:
            outcomes.append(try_mutant(copy, mutant))
            typer.echo(_row(outcomes[-1]))
        if controls:
            found = try_controls(copy, controls, nodes)
            outcomes += found
            typer.echo("\n".join(map(_row, found)))
    good = [one.patch for one in outcomes if one.verdict in ("killed", "passed")]
    typer.echo(
        f"score: {sum(one in good for one in mutants)}/{len(mutants)}, "
        f"controls {sum(one in good for one in controls)}/{len(controls)}"
    )
    raise typer.Exit(0 if len(good) == len(chosen) else 1)


if __name__ == "__main__":
    typer.run(main)
