"""Windows that violate no constraint on a channel: drawn step by step, each step knowing what the later ones allow."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Final

import numpy as np
import torch

from common.data.binning import Binning
from common.data.constraints import allowed_moves, directions
from common.models.generator import Generator, cut_windows, draw_records
from common.models.sequences import Courses
from common.study import Study
from common.synthesis.draws import draw_rows

_AT_ONCE: Final = 1024
_SLIGHT: Final = 1e-9
"""Chance of any value beside what a course says of a step."""


_TRIAL_SEED: Final = 0


def draw_courses(
    study: Study,
    binnings: Sequence[Binning],
    courses: Courses,
    labels: np.ndarray,
    generator: torch.Generator,
    random: np.random.Generator,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Bins of windows, whether they last or not; and cells of the channels in which categories must follow one another.

    Args:
        study: names the channels.
        binnings: of the measured columns, then of the channels.
        courses: a distribution over windows for each row.
        labels: (rows,) int64.
        generator: of the bins.
        random: of constrained channels.

    Returns:
        bins (rows, steps, channels) int64; by position of a channel, cells (rows, steps) int64.
    """
    moves, signs = allowed_moves(study.constraints, study.channels), directions(study.constraints, study.channels)
    if not moves and not signs:
        return courses.draw(generator).cpu().numpy(), {}
    settled = courses.settled(generator)  # (rows, steps, channels, widest + 1)
    bins = courses.shape.drawn(settled, generator).cpu().numpy()
    cells: dict[int, np.ndarray] = {}
    own = binnings[len(study.measured) :]
    for at, (name, values, binning) in enumerate(zip(study.channels, courses.shape.values, own, strict=True)):
        chances = settled[:, :, at].double().cpu().numpy()[:, :, [*range(values), -1]]
        if name in signs:
            rising = np.triu(np.ones((values, values), dtype=bool))
            bins[:, :, at] = _draw_chain(chances, rising if signs[name] > 0 else rising.T, random)
        elif name in moves:
            of_cells = _chances_of_cells(chances, binning, labels, len(moves[name]))
            cells[at] = _draw_chain(of_cells, moves[name], random)
            bins[:, :, at] = binning.bin_of[cells[at]]
    return bins, cells


@torch.no_grad()
def draw_trial(study: Study, binnings: Sequence[Binning], generator: Generator, labels: np.ndarray) -> np.ndarray:
    """Bins of the windows of one unit for each label, the same whenever and wherever they are drawn.

    Constraints on columns are left aside: a window knows of them by its latent alone.

    Args:
        study: with windows.
        binnings: of the measured columns, then of the channels.
        generator: on any device; it stays there.
        labels: (units,) int64.

    Returns:
        (units, steps, channels) int64, -1 beyond a unit's last step.
    """
    generator, random = deepcopy(generator).cpu(), torch.Generator().manual_seed(_TRIAL_SEED)
    noise = torch.randn(len(labels), generator.shape.noise, generator=random)
    outcome = generator(noise, torch.from_numpy(labels))
    chains = np.random.default_rng(_TRIAL_SEED)
    windows, _ = draw_courses(study, binnings, outcome.courses, labels, random, chains)
    return cut_windows(windows, draw_records(outcome, random), generator.shape)


def _chances_of_cells(chances: np.ndarray, binning: Binning, labels: np.ndarray, values: int) -> np.ndarray:
    """(rows, steps, cells and missing), from those of bins."""
    inside = chances[:, :, binning.bin_of[:values]] * binning.within[labels, None, :values]
    return np.concatenate([inside, chances[:, :, -1:]], axis=2)


def _draw_chain(chances: np.ndarray, allowed: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Values of steps that are independent but for which may follow which, missing steps left out.

    Args:
        chances: (rows, steps, values + 1), missing last.
        allowed: (values, values) bool, which may follow which.
        random: of the draws.

    Returns:
        (rows, steps) int64, the number of values where missing.
    """
    parts = [
        _draw_some(chances[begin : begin + _AT_ONCE], allowed, random) for begin in range(0, len(chances), _AT_ONCE)
    ]
    return np.concatenate([np.empty((0, chances.shape[1]), dtype=np.int64), *parts])


def _draw_some(chances: np.ndarray, allowed: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rows, steps, width = chances.shape
    values = width - 1
    # A course may leave a value no chance at all, and the constraint nothing else.
    held = chances[:, :, :values]
    chances = np.concatenate([held + _SLIGHT * held.sum(axis=2, keepdims=True), chances[:, :, values:]], axis=2)
    # The last state: no value so far, after which any may come.
    follow = np.vstack([allowed, np.ones(values, dtype=bool)]).astype(np.float64)
    ahead = np.ones((steps + 1, rows, width))
    for step in reversed(range(steps)):
        here, after = chances[:, step], ahead[step + 1]
        ahead[step] = (here[:, :values] * after[:, :values]) @ follow.T + here[:, values:] * after
        # A row's own scale does not matter, and over many steps it would leave what a float holds.
        ahead[step] /= ahead[step].max(axis=1, keepdims=True)
    drawn = np.empty((rows, steps), dtype=np.int64)
    state = np.full(rows, values)
    for step in range(steps):
        here, after = chances[:, step], ahead[step + 1]
        weights = np.hstack([here[:, :values] * follow[state] * after[:, :values], np.zeros((rows, 1))])
        weights[:, values] = here[:, values] * after[np.arange(rows), state]
        drawn[:, step] = draw_rows(weights, random)
        state = np.where(drawn[:, step] < values, drawn[:, step], state)
    return drawn
