"""How often a neural critic is right, from noised counts of held-out units and from rows that a generator made.

The accuracy decides, through a gate, how much a head of the critic weighs in the generator's loss: a head that cannot
tell synthetic from real units beyond doubt weighs nothing, so it cannot hurt. Source: algorithm notes, section 6.3.
"""

from dataclasses import dataclass

import numpy as np
import torch

from common.data.queries import Coded
from common.models.generator import GeneratorShape
from common.models.neural import NeuralCritic

_FULL = 0.15
"""Accuracy above chance, beyond doubt, at which the gate is wide open."""


@dataclass(frozen=True)
class Verdict:
    """How often a head is right, half of the cases real.

    accuracy: 0 to 1. error: its standard error. passing: share of real units that it takes for real. passed: of fakes.
    """

    accuracy: float
    error: float
    passing: float
    passed: float

    @property
    def telling(self) -> float:
        """Share of real units that look more real than half of the fakes: .5 by guessing, 1 if told apart always.

        For a head in balance, of whose verdicts never more than three quarters are right.
        """
        return min(max(self.passing - self.passed + 0.5, 0.0), 1.0)

    @property
    def telling_error(self) -> float:
        """Standard error of `telling`, which moves twice as far as the accuracy."""
        return 2 * self.error


@dataclass(frozen=True)
class Opening:
    """How far the gate of a critic is open, head by head.

    weights: 0, closed, to 1. passing: share of real units that it takes for real. passed: of fakes, so far.
    """

    weights: tuple[float, ...]
    passing: tuple[float, ...]
    passed: tuple[float, ...]


def one_hot(coded: Coded, shape: GeneratorShape) -> tuple[np.ndarray, np.ndarray | None]:
    """Units as a neural critic reads them: (units, record bins) and (units, steps, channel bins) bool, or None."""
    records = np.zeros((len(coded.labels), sum(shape.sizes)), dtype=bool)
    np.put_along_axis(records, coded.records + np.cumsum([0, *shape.sizes])[:-1], values=True, axis=1)
    if coded.windows is None or shape.sequence is None:
        return records, None
    bins = sum(shape.sequence.sizes)
    places = coded.windows + np.cumsum([0, *shape.sequence.sizes])[:-1]
    # A place of its own, cut off again, takes the steps beyond a unit's end.
    steps = np.zeros((*places.shape[:2], bins + 1), dtype=bool)
    np.put_along_axis(steps, np.where(coded.windows < 0, bins, places), values=True, axis=2)
    return records, steps[:, :, :bins]


@torch.no_grad()
def judge(critic: NeuralCritic, records: np.ndarray, steps: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """Which units each head takes for real, (units, heads) int64, 0 or 1.

    Guarantees: a unit's verdict depends on that unit and the critic alone, to the last bit. Units are judged one by
    one: a matrix library may add in another order when a neighbour is gone. On the processor, wherever the critic is.
    """
    own = NeuralCritic(critic.shape)
    own.load_state_dict(critic.state_dict())
    verdicts = np.zeros((len(labels), len(heads_of(critic))), dtype=np.int64)
    for unit in range(len(labels)):
        scores = own(
            torch.from_numpy(records[unit : unit + 1]).float(),
            None if steps is None else torch.from_numpy(steps[unit : unit + 1]).float(),
            torch.from_numpy(labels[unit : unit + 1]),
        )
        verdicts[unit] = [int(head.item() > 0) for head in scores.heads()]
    return verdicts


def heads_of(critic: NeuralCritic) -> list[str]:
    """Names of the heads, in the order of their scores."""
    present = {"semantic": critic.shape.semantic, "temporal": critic.shape.temporal}
    return [name for name, there in present.items() if there]


def verdicts_on(counts: np.ndarray, variance: float, fakes: np.ndarray) -> list[Verdict] | None:
    """How often each head is right.

    Args:
        counts: (heads, 2), noised counts in units of held-out units taken for fake, and for real.
        variance: of one count.
        fakes: (rows, heads), verdicts on rows that the generator made.

    Returns:
        None where there are so few held-out units that noise hides them.
    """
    found = []
    for (fake, real), verdicts in zip(counts, fakes.T, strict=True):
        total = float(fake + real)
        if total < 3 * float(np.sqrt(2 * variance)):
            return None
        right = min(max(float(real) / total, 0.0), 1.0)
        # First order in the noise of both counts, and the chance of the draw of units and rows.
        noise = variance * (right**2 + (1 - right) ** 2) / total**2
        passed = float(verdicts.mean())
        chance = 0.25 / total + 0.25 / len(verdicts)
        found.append(Verdict((right + 1 - passed) / 2, float(np.sqrt(noise + chance)) / 2, right, passed))
    return found


def gate(found: list[Verdict] | None, heads: int) -> Opening:
    """Closed for a head unless its accuracy passes chance by two standard errors."""
    if found is None:
        return Opening((0.0,) * heads, (1.0,) * heads, (0.0,) * heads)
    weights = tuple(min(max((one.accuracy - 0.5 - 2 * one.error) / _FULL, 0.0), 1.0) for one in found)
    return Opening(weights, tuple(one.passing for one in found), tuple(one.passed for one in found))


def is_given_up(openings: list[Opening], *, measurements: int) -> bool:
    """Whether a critic that saw nothing, in half of its stages in a row, gets no more to look with.

    It goes on learning from stage to stage, so that of many stages the first says little.

    Args:
        openings: of its gate, from the second measurement on, which is its first.
        measurements: of the discriminators in all.
    """
    patience = max((measurements - 1) // 2, 1)
    last = openings[-patience:]
    return len(last) == patience and not any(any(one.weights) for one in last)
