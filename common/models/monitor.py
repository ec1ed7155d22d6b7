"""A quality figure that a real federation can afford: how well synthetic rows teach to rank held-out units.

The coordinator fits a linear score on rows that it generated; each site counts its held-out units in a table of
(label, score band) under its hold-out budget; the area under the ROC curve is a function of the noised table.
"""

import math
from collections.abc import Sequence

import numpy as np

from common.data.queries import Coded
from common.data.tables import TableLayout, one_way

BANDS = 20


def score_layout() -> TableLayout:
    """One table of (not positive or positive, score band)."""
    return one_way([BANDS], 2)


def score_cells(coded: Coded, sizes: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """Score band of each unit or record, (rows, 1) int64.

    Args:
        coded: rows in bins.
        sizes: bins of each column, then of each channel.
        weights: of each bin, then the edges of the bands. What a window's steps weigh is their mean.
    """
    starts, columns = np.cumsum([0, *sizes]), coded.records.shape[1]
    score = weights[coded.records + starts[:columns]].sum(axis=1)
    if coded.windows is not None:
        there = coded.windows >= 0
        own = np.where(there, weights[coded.windows + starts[columns:-1]], 0.0)
        # Unit by unit along one axis, so that no other unit can change how the sum is rounded.
        sums = own.reshape(len(own), math.prod(own.shape[1:])).sum(axis=1)
        score = score + sums / np.maximum(there[:, :, 0].sum(axis=1), 1)
    edges = np.sort(weights[starts[-1] :])
    bands: np.ndarray = np.searchsorted(edges, score, side="right").astype(np.int64)[:, None]
    return bands


def ranking_quality(table: np.ndarray, variance: float) -> tuple[float, float] | None:
    """Area under the ROC curve from a noised table, and the standard error that the noise alone causes.

    Args:
        table: (2, BANDS), noised counts in units, not positive first.
        variance: of the noise in one cell, in units squared.

    Returns:
        None where the noised counts of a class are below 3 standard deviations: nothing can be said.
    """
    negative, positive = table
    if min(negative.sum(), positive.sum()) < 3 * float(np.sqrt(variance * BANDS)):
        return None
    # Positive beats negative in a lower band; within a band they tie.
    below = np.cumsum(negative) - negative / 2
    above = positive.sum() - np.cumsum(positive) + positive / 2
    pairs = float(negative.sum() * positive.sum())
    area = float(positive @ below) / pairs
    gradient_positive = below / pairs - area / positive.sum()
    gradient_negative = above / pairs - area / negative.sum()
    error = float(np.sqrt(variance * (gradient_positive @ gradient_positive + gradient_negative @ gradient_negative)))
    return min(max(area, 0.0), 1.0), error
