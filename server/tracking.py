"""A run in MLflow: the figures of its snapshot and what was published. Nothing else of its folder is opened."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.errors import CheckpointError, OutputError
from common.evaluation.numerals import is_number
from server.snapshot import find_run, snapshot_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PUBLISHED: Final = ("certificate.json", "card.md", "croissant.json")
"""Files of a release that are logged; the report of a simulation compares with real rows, and is not."""
_NAME: Final = ("privshare.run", "privshare.study", "privshare.began")
"""Tags that tell a run from all others."""
_STATE: Final = "privshare.state"
_NOTE: Final = "mlflow.note.content"
_STATUS: Final = {
    "published": "FINISHED",
    "measured": "FINISHED",
    "failed": "FAILED",
    "lost": "FAILED",
    "stopped": "KILLED",
}
"""How MLflow calls a run that is not going on."""
_BATCH: Final = 500
_DECIDED: Final = ("share", "multiplier", "proportional", "integral", "derivative", "error", "quality", "target")


@dataclass(frozen=True)
class Point:
    """A figure of a metric at a step: a round, a measurement, or how many of both were done."""

    key: str
    step: int
    value: float


@dataclass(frozen=True)
class Exported:
    """What is in MLflow now. points: that were not there before."""

    experiment: str
    run_id: str
    points: int
    artifacts: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def export(path: Path, *, tracking_uri: str, experiment: str | None, now: datetime) -> Exported:
    """Log a run; one that is there already gets what it lacks.

    Args:
        path: the folder of a run, or a coordinator's home, whose newest run is taken.
        tracking_uri: sqlite:///FILE, or the https:// of a server.
        experiment: its name there; None for the study's.
        now: the moment that is written beside figures.

    Raises:
        OutputError: MLflow is not installed, or does not take it.
        CheckpointError, StudyError: as `snapshot_of`; no run was started yet.
    """
    folder = find_run(path)
    if folder is None:
        raise CheckpointError(f"{path}: no run was started yet")
    found = snapshot_of(folder, now=now)
    if not tracking_uri.startswith(("sqlite:///", "http://", "https://")):
        raise OutputError("tracking-uri: expected sqlite:///FILE, or the https:// of a server")
    try:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 (of an extra)
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 (as above)
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 (as above)
    except ImportError:
        raise OutputError("MLflow is not installed; pip install 'privshare[mlflow]'") from None
    try:
        return _log(MlflowClient(tracking_uri), folder, found, experiment or found["study"]["name"], now)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        # What they say may hold the address, and that a password.
        raise OutputError(f"tracking-uri: MLflow cannot write there ({type(error).__name__})") from None


def params_of(snapshot: Mapping[str, Any]) -> dict[str, str]:
    """What does not change in a run."""
    study, run = snapshot["study"], snapshot["run"]
    said = {f"study.{name}": value for name, value in study.items()}
    said |= {f"run.{name}": run[name] for name in ("name", "is_simulated", "stages", "rounds")}
    said["sites"] = ", ".join(site["site"] for site in snapshot["sites"])
    return {name: str(value) for name, value in said.items() if value not in (None, "")}


def points_of(snapshot: Mapping[str, Any]) -> list[Point]:
    """All figures of a snapshot; one that is not known has no point."""
    done = snapshot["run"]["stage"] + snapshot["run"]["round"]
    found = (*_standing(snapshot, done), *_noise(snapshot), *_quality(snapshot["quality"], done))
    return [Point(key, step, float(value)) for key, step, value in found if is_number(value)]


def _standing(snapshot: Mapping[str, Any], done: int) -> Iterator[tuple[str, int, Any]]:
    run = snapshot["run"]
    yield "progress", done, run["progress"]
    yield "budget_used", done, run["budget_used"]
    for own in snapshot["budget"]:
        for name in ("spent", "projected", "epsilon_spent", "epsilon_projected", "epsilon_cap"):
            yield f"budget/{name}/{own['account']}/{own['site']}", done, own[name]
    for site in snapshot["sites"]:
        yield f"sites/dropped/{site['site']}", done, site["dropped"]
    for gate in snapshot["gates"]:
        yield f"gate/{gate['id']}", done, gate["value"]


def _noise(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, int, Any]]:
    for decided in snapshot["noise"]:
        for name in _DECIDED:
            yield f"noise/{name}", decided["stage"], decided[name]
    for release in snapshot["releases"]:
        yield f"noise_stddev/{release['kind']}", release["stage"], release["stddev"]


def _quality(quality: Mapping[str, Any], done: int) -> Iterator[tuple[str, int, Any]]:
    for measured in quality["frechet"]:
        yield "quality/frechet_ratio", measured["stage"], measured["ratio"]
    for bought in quality["validation"]:
        yield "quality/validation_auc", bought["stage"], bought["auc"]
        yield "quality/validation_auc_standard_error", bought["stage"], bought["standard_error"]
    yield "quality/discriminator_accuracy", done, quality["accuracy"]
    for loss in quality["losses"]:
        yield f"loss/{loss['discriminator']}", loss["round"], loss["value"]


def _log(client: "MlflowClient", folder: Path, found: Mapping[str, Any], experiment: str, now: datetime) -> Exported:
    from mlflow.entities import Metric, Param  # noqa: PLC0415 (of an extra)

    run = found["run"]
    run_id, is_new = _run_in(client, found, experiment, name=run["name"] or folder.name)
    points = points_of(found)
    if not is_new:
        keys = {one.key for one in points}
        there = {(one.key, one.step) for key in keys for one in client.get_metric_history(run_id, key)}
        points = [one for one in points if (one.key, one.step) not in there]
    client.log_batch(run_id, params=[Param(*pair) for pair in params_of(found).items()])
    for begin in range(0, len(points), _BATCH):
        some = points[begin : begin + _BATCH]
        client.log_batch(run_id, [Metric(one.key, one.value, _milliseconds(now), one.step) for one in some])
    client.set_tag(run_id, _STATE, run["state"])
    client.set_tag(run_id, _NOTE, found["verdict"]["sentence"])
    artifacts = tuple(one for one in PUBLISHED if run["state"] == "published" and (folder / one).is_file())
    for one in artifacts:
        client.log_artifact(run_id, str(folder / one))
    if (status := _STATUS.get(run["state"])) is not None:
        ended = now if run["last_step_at"] is None else datetime.fromisoformat(run["last_step_at"])
        client.set_terminated(run_id, status, end_time=_milliseconds(ended))
    else:
        client.update_run(run_id, "RUNNING")
    return Exported(experiment, run_id, len(points), artifacts)


def _run_in(client: "MlflowClient", found: Mapping[str, Any], experiment: str, *, name: str) -> tuple[str, bool]:
    """The run's own one in MLflow, and whether it was made just now."""
    held = client.get_experiment_by_name(experiment)
    number = held.experiment_id if held is not None else client.create_experiment(experiment)
    began = found["run"]["began_at"]
    tags = dict(zip(_NAME, (name, found["study"]["digest"], began or ""), strict=True))
    if there := client.search_runs([number], " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())):
        return there[0].info.run_id, False
    start = None if began is None else _milliseconds(datetime.fromisoformat(began))
    return client.create_run(number, start_time=start, tags=tags, run_name=name).info.run_id, True


def _milliseconds(moment: datetime) -> int:
    return round(1000 * moment.timestamp())
