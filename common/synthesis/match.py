"""Columns distributed as the released one-way tables say, as far as their noise lets one know.

Of each class, the weights of latents that are most likely: a bin's share misses the released one by the noise of its
count, and the generator counts for as much as the units that it was learned from. That is their number times the
relative entropy of rows (Sanov 1957); what latents decide of a row is a share of it, and so is what their own entropy
counts for. Without the factor the noise itself would be fitted, and tables of a rare class come out worse than before.
"""

from typing import Final

import numpy as np

from common.errors import ConditionError, ExitCode
from common.synthesis.entropy import nearest
from common.synthesis.latents import Latents
from common.synthesis.release import Release

_LEAST: Final = 1e-9
"""Share of what columns vary by that latents decide, below which their weights change nothing."""


def match_ratio(release: Release, latents: Latents) -> np.ndarray:
    """What weights of latents are to be multiplied by, (classes, latents); shares of classes stay.

    Args:
        release: that holds one-way tables.
        latents: that know the chances of bins.

    Raises:
        ConditionError: there are no such weights.
    """
    tables = release.one_way
    assert tables is not None
    counts, stddevs = np.concatenate(tables.counts, axis=1), np.concatenate(tables.stddevs)
    features = np.concatenate([latents.bins(name) for name in release.study.measured], axis=2)
    base = latents.weights({})
    ratios = np.ones_like(base)
    for label, units in enumerate(np.maximum(release.label_counts, 1.0)):
        own = base[label] / base[label].sum()
        mean = own @ features[label]
        decided = float((own @ (features[label] - mean) ** 2).sum() / max((mean * (1 - mean)).sum(), _LEAST))
        if decided < _LEAST:
            continue
        variance = decided * stddevs**2 / units
        weights = nearest(own, features[label] - counts[label] / units, variance=variance)
        if weights is None:
            raise ConditionError("match: the released tables cannot be met", ExitCode.CONDITION_UNSUPPORTED)
        ratios[label] = np.divide(weights, own, out=ratios[label], where=own > 0)
    return ratios
