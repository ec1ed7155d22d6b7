"""The folder of a run, as it is read and steered from outside: what it says, who holds it, and what is asked of it.

Whoever conducts the run looks for a request between two steps, after its checkpoint: a run that is paused or stopped
there has lost nothing, and nothing is asked of a site while it waits.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from common.data.schema import Number, Section, Text, Whole
from common.errors import CheckpointError, ExitCode, OutputError, StoppedError
from common.study import explain
from server.checkpoints import remove_file, write_json
from server.journal import JOURNAL, Journal

START_SCHEMA: Final = "privshare.start/1"
OUTCOME_SCHEMA: Final = "privshare.outcome/1"
REQUEST_SCHEMA: Final = "privshare.request/1"
LOCK: Final = "running"
"""The file that whoever conducts a run holds locked."""
_REQUEST: Final = "request.json"
_OUTCOME: Final = "outcome.json"
FILES: Final = (
    "start.json",
    _OUTCOME,
    _REQUEST,
    LOCK,
    JOURNAL,
    "rounds.jsonl",
    "certificate.json",
    "checkpoints",
)
"""What changes when something happens to a run."""
_LOOK: Final = 0.5
"""Seconds between two looks at the request while a run is paused."""

Wish = Literal["pause", "stop"]


class Start(Section):
    """start.json: what fixes a run; the same when it is resumed."""

    schema_version: Annotated[Literal["privshare.start/1"], Field(alias="schema")]
    # The coordinator's folder, with its keys and its members.
    home: Path
    # Names the run for ever.
    run: Text
    # Of models and latents, not of privacy noise.
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 1)]
    device: Text
    # Seconds to wait for sites to connect, and for their answers to one question.
    patience: Annotated[Number, Field(gt=0)]
    timeout: Annotated[Number, Field(gt=0)]


class Outcome(Section):
    """outcome.json: how a run ended; there is none while it may go on."""

    schema_version: Annotated[Literal["privshare.outcome/1"], Field(alias="schema")]
    code: Whole
    message: Text


class Request(Section):
    """request.json: what the operator asks of whoever conducts the run; there is none while it is to go on."""

    schema_version: Annotated[Literal["privshare.request/1"], Field(alias="schema")]
    wish: Wish


def read_start(folder: Path) -> Start:
    """What a run's folder says.

    Raises:
        CheckpointError: it is no such folder.
    """
    path = folder / "start.json"
    try:
        return Start.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        why = explain(error.errors()[0], Start) if isinstance(error, ValidationError) else "is not the folder of a run"
        raise CheckpointError(f"{path}: {why}") from None


def read_outcome(folder: Path) -> Outcome | None:
    """How a run ended; None while it has not."""
    try:
        return Outcome.model_validate(json.loads((folder / _OUTCOME).read_bytes()))
    except (OSError, ValueError):
        return None


def write_outcome(folder: Path, code: ExitCode, message: str) -> None:
    """Write down how a run ended."""
    write_json(folder / _OUTCOME, {"schema": OUTCOME_SCHEMA, "code": int(code), "message": message})


def forget_outcome(folder: Path) -> None:
    """Let a run go on that has ended: a failure that was mended, or nothing.

    Raises:
        OutputError: the folder cannot be written.
    """
    remove_file(folder / _OUTCOME)


@contextmanager
def hold(folder: Path, *, patience: float = 0.0, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Hold a run's folder for this process.

    Args:
        folder: of the run.
        patience: seconds to wait for another one to let go.
        clock: seconds.

    Raises:
        OutputError: another one holds it, and does not let go; or it cannot be written.
    """
    try:
        file = (folder / LOCK).open("wb")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    with file:
        deadline = clock() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock() >= deadline:
                    raise OutputError(f"{folder}: another process runs it", ExitCode.ALREADY_RUNNING) from None
                time.sleep(0.5)
        yield


def is_held(folder: Path) -> bool:
    """Whether a process conducts the run now."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go when the file is closed, at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def ask(folder: Path, wish: Wish) -> None:
    """Ask for a pause or a stop; durable when this returns. It is honoured after the step that is going on.

    Raises:
        CheckpointError: the run has ended, or there is none.
        OutputError: the folder cannot be written.
    """
    _check_going(folder)
    write_json(folder / _REQUEST, {"schema": REQUEST_SCHEMA, "wish": wish})


def take_back(folder: Path) -> Wish | None:
    """Take back what was asked, so that the run goes on; what it was, None where nothing was.

    Raises:
        CheckpointError: the request is not of its form.
        OutputError: the folder cannot be written.
    """
    wish = asked(folder)
    remove_file(folder / _REQUEST)
    return wish


def asked(folder: Path) -> Wish | None:
    """What is asked of whoever conducts the run; None where nothing is.

    Raises:
        CheckpointError: it cannot be read: a request that is passed over might be one to stop.
    """
    path = folder / _REQUEST
    try:
        return Request.model_validate(json.loads(path.read_bytes())).wish
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: not a request; delete it, and ask again") from None


def heed(folder: Path, journal: Journal, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait for as long as a pause is asked for, and end where a stop is. Between two steps, with nothing in flight.

    Raises:
        StoppedError: a stop is asked for.
        CheckpointError: the request cannot be read.
    """
    if (wish := asked(folder)) == "pause":
        journal.note("paused")
        while (wish := asked(folder)) == "pause":
            sleep(_LOOK)
        if wish is None:
            journal.note("resumed")
    if wish == "stop":
        journal.note("stopped")
        raise StoppedError("stopped as it was asked to; it goes on from here when it is started again")


def _check_going(folder: Path) -> None:
    """Refuse to ask something of a run that has ended, or of none.

    Raises:
        CheckpointError: it is one of them.
    """
    if not (folder / "study.lock.yaml").exists():
        raise CheckpointError(f"{folder}: not the folder of a run")
    outcome = read_outcome(folder)
    if outcome is not None and outcome.code == ExitCode.STOPPED:
        raise CheckpointError(f"{folder}: its run is stopped; start it again, and it goes on where it was")
    if outcome is not None or (folder / "certificate.json").exists():
        raise CheckpointError(f"{folder}: its run has ended")
