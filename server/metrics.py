"""A snapshot in the text format of Prometheus: what a coordinator's monitoring watches. Gauges alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from common.evaluation.numerals import is_number
from server.snapshot import MEANINGS

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Metric, the field of the snapshot that explains it, its labels.
_GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "run_info": ("run.state", ("study", "digest", "run", "state")),
    "progress_ratio": ("run.progress", ()),
    "stage": ("run.stage", ()),
    "stages": ("run.stages", ()),
    "round": ("run.round", ()),
    "rounds": ("run.rounds", ()),
    "eta_seconds": ("run.eta_seconds", ()),
    "last_step_timestamp_seconds": ("run.last_step_at", ()),
    "exit_code": ("run.code", ()),
    "budget_spent_ratio": ("budget[].spent", ("site", "account")),
    "budget_projected_ratio": ("budget[].projected", ("site", "account")),
    "budget_spent_epsilon": ("budget[].epsilon_spent", ("site", "account")),
    "budget_cap_epsilon": ("budget[].epsilon_cap", ("site", "account")),
    "noise_share": ("noise[].share", ()),
    "noise_multiplier": ("noise[].multiplier", ()),
    "noise_error": ("noise[].error", ()),
    "noise_stddev": ("releases[].stddev", ("kind",)),
    "frechet_ratio": ("quality.frechet[].ratio", ()),
    "validation_auc": ("quality.validation[].auc", ()),
    "discriminator_accuracy": ("quality.accuracy", ()),
    "loss": ("quality.losses[].value", ("discriminator",)),
    "site_last_seen_timestamp_seconds": ("sites[].last_seen", ("site",)),
    "site_missed_questions": ("sites[].missed", ("site",)),
    "site_dropped_answers": ("sites[].dropped", ("site",)),
    "site_ledger_entries": ("sites[].ledger_sequence", ("site",)),
    "site_certificate_days": ("sites[].certificate_days", ("site",)),
    "certificate_days": ("coordinator.certificate_days", ()),
    "gate_passed": ("gates[].state", ("gate",)),
}
NAMES: Final = tuple(f"privshare_{name}" for name in _GAUGES)


def as_metrics(snapshot: Mapping[str, Any]) -> bytes:
    """What monitoring scrapes; a figure that is not known has no sample."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(snapshot))
    return generate_latest(registry)


class _Snapshot(Collector):
    """The gauges of one snapshot."""

    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every gauge with its samples."""
        samples: dict[str, list[tuple[tuple[str, ...], float]]] = {name: [] for name in _GAUGES}
        for name, labels, value in _samples(self._snapshot):
            if is_number(value):
                samples[name].append((labels, float(value)))
        for name, (path, labels) in _GAUGES.items():
            family = GaugeMetricFamily(f"privshare_{name}", MEANINGS[path], labels=labels)
            for own, value in samples[name]:
                family.add_metric(own, value)
            yield family


def _samples(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Gauge, values of its labels, and what it stands at."""
    study, run = snapshot["study"], snapshot["run"]
    yield "run_info", (study["name"], study["digest"], run["name"] or "", run["state"]), 1
    for name, field in (("progress_ratio", "progress"), ("eta_seconds", "eta_seconds"), ("exit_code", "code")):
        yield name, (), run[field]
    for name in ("stage", "stages", "round", "rounds"):
        yield name, (), run[name]
    yield "last_step_timestamp_seconds", (), _seconds(run["last_step_at"])
    for one in snapshot["budget"]:
        labels = one["site"], one["account"]
        yield "budget_spent_ratio", labels, one["spent"]
        yield "budget_projected_ratio", labels, one["projected"]
        yield "budget_spent_epsilon", labels, one["epsilon_spent"]
        yield "budget_cap_epsilon", labels, one["epsilon_cap"]
    yield from _course(snapshot)
    for one in snapshot["sites"]:
        yield "site_last_seen_timestamp_seconds", (one["site"],), _seconds(one["last_seen"])
        yield "site_missed_questions", (one["site"],), one["missed"]
        yield "site_dropped_answers", (one["site"],), one["dropped"]
        yield "site_ledger_entries", (one["site"],), one["ledger_sequence"]
        yield "site_certificate_days", (one["site"],), one["certificate_days"]
    yield "certificate_days", (), snapshot["coordinator"]["certificate_days"]
    for gate in snapshot["gates"]:
        yield "gate_passed", (gate["id"],), {"passed": 1, "failed": 0}.get(gate["state"])


def _course(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Of what has a course, where it stands."""
    quality = snapshot["quality"]
    for decided in snapshot["noise"][-1:]:
        yield "noise_share", (), decided["share"]
        yield "noise_multiplier", (), decided["multiplier"]
        yield "noise_error", (), decided["error"]
    yield from (("noise_stddev", (kind,), value) for kind, value in _last(snapshot["releases"], "kind", "stddev"))
    yield from (("frechet_ratio", (), one["ratio"]) for one in quality["frechet"][-1:])
    yield from (("validation_auc", (), one["auc"]) for one in quality["validation"][-1:])
    yield "discriminator_accuracy", (), quality["accuracy"]
    yield from (("loss", (name,), value) for name, value in _last(quality["losses"], "discriminator", "value"))


def _last(rows: Sequence[Mapping[str, Any]], key: str, value: str) -> Iterable[tuple[str, Any]]:
    return {str(row[key]): row[value] for row in rows}.items()


def _seconds(moment: str | None) -> float | None:
    return None if moment is None else datetime.fromisoformat(moment).timestamp()
