"""The gates that a coordinator can check: their figures were bought from held-out units, or are known for nothing."""

from collections.abc import Mapping
from typing import Protocol

from common.evaluation.gates import Gate, at_least, at_most
from common.study import Study

_DOUBT = 2.0
"""Standard errors by which the truth may lie below a figure that was bought with noise."""


class Found(Protocol):
    """What gates look at of the state of a run; the state itself, or what a checkpoint says of it."""

    @property
    def losses(self) -> Mapping[str, float]:
        """Of each measured critic, in noise variances a cell."""

    @property
    def monitor(self) -> Mapping[str, float | None] | None:
        """What held-out units said of the end."""


def gates_of(study: Study, state: Found) -> list[Gate]:
    """What the study's gates say of the end of a run; empty where it has none."""
    found = []
    if study.gates.monitor_auc is not None:
        monitor = state.monitor or {}
        auc, error = monitor.get("auc"), monitor.get("standard_error")
        least = None if auc is None or error is None else auc - _DOUBT * error
        threshold = study.gates.monitor_auc
        rule = f"at least {threshold:g} for the AUC on held-out units less {_DOUBT:g} standard errors"
        found.append(at_least("monitor_auc", least, threshold, rule, "public"))
    if study.gates.misfit is not None:
        worst = max(state.losses.values(), default=None)
        threshold = study.gates.misfit
        rule = f"at most {threshold:g} noise variances a cell between generator and releases, of any discriminator"
        found.append(at_most("misfit", worst, threshold, rule, "public"))
    return found
