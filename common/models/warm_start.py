"""Where a generator begins: at the released tables of one column, and of one step after another.

A few hundred steps must do, and what can be read off a release need not be learned: biases are set to the logarithms of
released shares, the paths of a grid to the correlations that released tables show. Post-processing.
"""

from itertools import combinations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import ndtri
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from common.data.queries import Family
from common.models.generator import Generator
from common.models.paths import FIRST_SPREAD, KEPT, REACH, PathHead, path_noise
from common.models.sequences import SequenceShape
from common.models.targets import Target, Targets

_LEAST = 1e-4
"""No released share counts as less: its logarithm would be out of reach of the rest of the network."""

# What is believed of correlations before tables are looked at: mean and standard deviation.
_OF_CHANNELS = (0.0, 0.3)
_OF_NEXT_STEPS = (0.8, 0.2)
_OF_ENDS = (0.4, 0.3)
_LARGEST = 0.98
# What is believed of how two channels' gaps go together: the standard deviation around not at all.
_OF_GAPS = 0.3
# A rhythm that decides on gaps moves log odds by ten, which a few hundred steps of training could not learn otherwise.
_LEAST_STEEPNESS = 3.0
_LOGISTIC = np.pi**2 / 3
"""Variance of a standard logistic variable."""
# Of the chance that a reading follows a gap or a reading, around the share of readings.
_OF_SEEN = 0.25
_LEAST_WHITE = 0.02
# Of the variance of a level, what comes from the features that the record is made of. They change while the record is
# learned, and what channels have in common by them is lost; what a path has of its own stays.
_TOLD = 0.25
_LATENTS = 4096
_OF_LATENTS = 512
# Of the variance of a level, so that those of many channels can be told apart.
_RIDGE = 1e-3


@torch.no_grad()
def warm_start(generator: Generator, targets: Targets) -> None:
    """Set a new generator's parameters in place, from what was released so far."""
    shape = generator.shape
    units = float(targets.label_counts.sum())
    _set(generator.heads.bias, _log_shares(targets.tables["one_way"], units, shape.sizes))
    if shape.sequence is None or generator.sequence is None:
        return
    wide = shape.sequence.widest + 1
    flat = np.full(len(shape.sequence.sizes) * wide, np.log(_LEAST))
    flat[shape.sequence.slots] = _log_shares(targets.tables["average"], units, shape.sequence.sizes)
    if isinstance(generator.sequence, PathHead):
        _start_paths(generator.sequence, flat.reshape(-1, wide), _features(generator, targets), targets)
    else:
        _set(generator.sequence.tilt.bias, flat)


def _features(generator: Generator, targets: Targets) -> Tensor:
    """What the generator makes of some latents, classes as often as they were released, (rows, wide)."""
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(_LATENTS, generator.shape.latent, generator=random)
    until = np.cumsum(targets.label_counts) / targets.label_counts.sum() * _LATENTS
    labels = np.searchsorted(until, np.arange(_LATENTS), side="right").clip(max=len(until) - 1)
    device = generator.heads.bias.device
    return generator.features(latent.to(device), torch.from_numpy(labels).to(device))


def _start_paths(head: PathHead, log_shares: np.ndarray, features: Tensor, targets: Targets) -> None:
    """Places of bins, the make-up of paths and the chain of being seen.

    Args:
        head: changed in place.
        log_shares: (channels, widest + 1), of values and of missing.
        features: (rows, wide), of some latents.
        targets: released so far.
    """
    shape = head.shape
    shares = [np.exp(one[:values]) for one, values in zip(log_shares, shape.values, strict=True)]
    places = [_standard(share) for share in shares]
    usual = head.tilt.bias.view(len(shares), -1)
    for channel, (place, ordered) in enumerate(zip(places, shape.ordered, strict=True)):
        held = slice(0, len(place))
        _set(head.places[channel, held], place)
        # A position is drawn around zero, and a value around it: together they give the released shares.
        _set(usual[channel, held], log_shares[channel, held] + (place**2 / 2 if ordered else 0))
    _start_courses(head, _root_of(_correlations(places, shares, targets, shape)), places, features, targets)
    values = np.array([share.sum() for share in shares])
    seen = values / (values + np.where(shape.missing, np.exp(log_shares[:, -1]), 0.0))
    _start_gaps(head, _missing_together(seen, targets, shape))
    _start_seen(head, seen, features, targets)


def _start_courses(
    head: PathHead, mixing: np.ndarray, places: list[np.ndarray], features: Tensor, targets: Targets
) -> None:
    """How much of each channel is level, white noise and slower courses, and which channels share them."""
    shape, channels = head.shape, len(places)
    wander = head.wander.weight.view(-1, 1 + len(KEPT), 2 * channels)
    # Levels of variance 1 that know nothing of each other, and then as much as their channels do.
    levels = head.level.weight[:channels].clone()
    variance = torch.cov((features @ levels.T).T).view(channels, channels)
    ridge = _RIDGE * variance.diagonal().mean() * torch.eye(channels, device=variance.device)
    apart = torch.linalg.solve_triangular(torch.linalg.cholesky(variance + ridge), levels, upper=False)
    levels = _tensor(mixing).to(apart) @ apart
    for channel in np.flatnonzero(shape.ordered).tolist():
        place = places[channel]
        both_seen = (channel, slice(0, len(place)), slice(0, len(place)))
        following, ends = (
            _correlation(*_block(targets.tables[family], both_seen), place, place, believed=believed)
            for family, believed in ((Family.TRANSITION, _OF_NEXT_STEPS), (Family.ENDS, _OF_ENDS))
        )
        level = max(ends, 0.0)
        slow = float(np.clip((following - level) / np.mean(KEPT[1:]), 0.0, 1 - level - _LEAST_WHITE))
        white = max(1 - level - slow - FIRST_SPREAD, _LEAST_WHITE)
        head.level.weight[channel] = (_TOLD * level) ** 0.5 * levels[channel]
        head.level.bias[channel] = -head.level.weight[channel] @ features.mean(dim=0)
        for kind, share in enumerate([(1 - _TOLD) * level, white, *[slow / (len(KEPT) - 1)] * (len(KEPT) - 1)]):
            wander[channel, kind, :channels] = share**0.5 * _tensor(mixing[channel])


def _start_gaps(head: PathHead, correlations: np.ndarray) -> None:
    """How much of being seen channels share in a step: by what moves the log odds, beside a logistic draw of their own.

    Args:
        head: changed in place.
        correlations: (channels, channels), of what decides on a gap.
    """
    channels = len(correlations)
    apart = correlations - np.eye(channels)
    shared = np.clip(np.abs(apart).max(axis=1), _LEAST, _LARGEST)
    mixing = _root_of(apart / np.sqrt(np.outer(shared, shared)) + np.eye(channels))
    spread = np.sqrt(_LOGISTIC * shared / (1 - shared))
    steepness = np.maximum(spread, _LEAST_STEEPNESS)
    _set(head.steepness, np.log(steepness) / REACH)
    # What else moves the odds does so no more than before.
    own = slice(channels, 2 * channels)
    for name, value in head.named_parameters():
        if name.startswith(("level.", "trend.", "wander.", "rhythm.", "wave.")):
            value[own] /= _tensor(steepness.reshape(-1, *[1] * (value.dim() - 1))).to(value)
    white = head.wander.weight.view(-1, 1 + len(KEPT), 2 * channels)[own, 1, channels:]
    white += _tensor((spread / steepness)[:, None] * mixing).to(white)


def _start_seen(head: PathHead, shares: np.ndarray, features: Tensor, targets: Targets) -> None:
    """Log odds of being seen after a gap and after a reading, all classes together.

    From the few cells that end in a gap: the many cells of two values hold more noise.

    Args:
        head: changed in place; courses and what channels share of gaps are set.
        shares: (channels,), of steps that are seen.
        features: (rows, wide), of some latents.
        targets: released so far.
    """
    units, transitions = float(targets.label_counts.sum()), targets.tables[Family.TRANSITION]
    head.seen.bias.zero_()
    some = features[:: len(features) // _OF_LATENTS]
    noise = torch.randn(len(some), path_noise(head.shape), generator=torch.Generator().manual_seed(0))
    moved = head.odds(some, noise.to(some)).flatten(0, 1).cpu().numpy()
    counts = transitions.values.sum(axis=0)  # (channels, widest + 1, widest + 1)
    deviation = _deviation(transitions.precision).min(axis=(1, 2)) * len(transitions.values) ** 0.5
    odds = []
    for share, lost, cells in (
        (1 - shares, counts[:, -1, -1], np.ones(len(shares))),
        (shares, counts[:, :-1, -1].sum(axis=1), np.array(head.shape.values)),
    ):
        mass = np.maximum(share * units, 1.0)
        # No weight where nothing was measured.
        weight = _OF_SEEN**2 / (_OF_SEEN**2 + deviation**2 * cells / mass**2)
        chance = np.clip(shares + weight * (1 - lost / mass - shares), 0.01, 0.99)
        # Moved by so much, odds that were as much as this give the same chance; as of a logistic by a normal.
        odds.append(np.log(chance / (1 - chance)) * np.sqrt(1 + moved.var(axis=0) / _LOGISTIC) - moved.mean(axis=0))
    _set(head.seen.bias, odds[0])
    _set(head.seen_again, odds[1] - odds[0])


def _correlations(
    places: list[np.ndarray], shares: list[np.ndarray], targets: Targets, shape: SequenceShape
) -> np.ndarray:
    """Of every two channels in one step, (channels, channels); 0 where a channel has no order."""
    found = np.eye(len(places))
    table = targets.tables[Family.TOGETHER]
    by_channel = np.split(targets.groups.channels, np.cumsum(shape.sizes)[:-1])
    groups = [own[:values] for own, values in zip(by_channel, shape.values, strict=True)]
    ordered = np.flatnonzero(shape.ordered)
    for at, left in enumerate(ordered):
        for right in ordered[at + 1 :]:
            block, deviation = _block(table, (np.unique(groups[left])[:, None], np.unique(groups[right])))
            scores = [_scores_of(groups[channel], places[channel], shares[channel]) for channel in (left, right)]
            found[left, right] = found[right, left] = _correlation(block, deviation, *scores, believed=_OF_CHANNELS)
    return found


def _missing_together(shares: np.ndarray, targets: Targets, shape: SequenceShape) -> np.ndarray:
    """Of every two channels, the correlation of what decides on a gap in one step, (channels, channels).

    Tetrachoric: of two normals that are both low as often as both channels are missing.
    """
    found = np.eye(len(shares))
    table, units = targets.tables[Family.TOGETHER], float(targets.label_counts.sum())
    last = targets.groups.channels[np.cumsum(shape.sizes) - 1]  # the group of missing
    lost = np.clip(1 - shares, _LEAST, 1 - _LEAST)
    for left, right in combinations(np.flatnonzero(shape.missing), 2):
        both, deviation = _block(table, (slice(last[left], last[left] + 1), slice(last[right], last[right] + 1)))
        if np.isfinite(deviation):
            share = float(both[0, 0]) / units
            found[left, right] = found[right, left] = _tetrachoric(share, deviation / units, lost[[left, right]])
    return found


def _tetrachoric(both: float, deviation: float, chances: np.ndarray) -> float:
    """The correlation of two normals by how often they are low together; the likeliest beside what is believed of it.

    Args:
        both: share of cases in which both are low, with noise.
        deviation: standard deviation of that.
        chances: (2,), that each is low.
    """
    quantiles = ndtri(chances)

    def unlikely(correlation: float) -> float:
        chance = float(multivariate_normal.cdf(quantiles, cov=[[1, correlation], [correlation, 1]]))
        return ((chance - both) / deviation) ** 2 + (correlation / _OF_GAPS) ** 2

    return float(minimize_scalar(unlikely, bounds=(-_LARGEST, _LARGEST), method="bounded").x)


def _scores_of(groups: np.ndarray, scores: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Scores of groups of bins, of mean 0 and variance 1 as those of the bins."""
    _, own = np.unique(groups, return_inverse=True)
    held = np.bincount(own, weights=shares)
    found = np.bincount(own, weights=shares * scores) / held
    return np.asarray(found / max(held / held.sum() @ found**2, _LEAST) ** 0.5)


def _block(table: Target, cells: tuple[int | slice | np.ndarray, ...]) -> tuple[np.ndarray, float]:
    """A part of a table, all classes together, and the standard deviation of one of its counts."""
    deviation = _deviation(table.precision[cells]).max() * len(table.values) ** 0.5
    return table.values[:, *cells].sum(axis=0), float(deviation)


def _correlation(
    table: np.ndarray, deviation: float, left: np.ndarray, right: np.ndarray, *, believed: tuple[float, float]
) -> float:
    """The correlation of two scores, between what a noised table shows and what is believed, by their precisions.

    Args:
        table: (left, right) noised counts.
        deviation: standard deviation of one count; infinite where nothing was measured.
        left: scores, of mean 0 and variance 1 where counts are exact.
        right: likewise.
        believed: mean and standard deviation of a normal prior.
    """
    mean, spread = believed
    if not np.isfinite(deviation):
        return mean
    # Where noise hides how many there are, this says too many: the table then shows little, and counts for little.
    count = max(float(table.sum()), deviation * table.size**0.5, 1.0)
    variance = (deviation / count) ** 2 * float((left**2).sum() * (right**2).sum())
    weight = spread**2 / (spread**2 + variance)
    return float(np.clip(mean + weight * (left @ table @ right / count - mean), -_LARGEST, _LARGEST))


def _deviation(precision: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(precision > 0, 1 / np.sqrt(np.where(precision > 0, precision, 1.0)), np.inf))


def _root_of(correlations: np.ndarray) -> np.ndarray:
    """A matrix whose rows have length 1 and these inner products, as nearly as can be."""
    values, vectors = np.linalg.eigh(correlations)
    root = vectors * np.sqrt(np.maximum(values, 1 - _LARGEST))
    return np.asarray(root / np.linalg.norm(root, axis=1, keepdims=True))


def _standard(shares: np.ndarray) -> np.ndarray:
    """Normal scores of ordered bins, with mean 0 and variance 1 under the shares."""
    shares = shares / shares.sum()
    scores = ndtri(np.clip(shares.cumsum() - shares / 2, 1e-3, 1 - 1e-3))
    centred = scores - shares @ scores
    return np.asarray(centred / np.sqrt(max(shares @ centred**2, _LEAST)))


def _log_shares(table: Target, units: float, sizes: tuple[int, ...]) -> np.ndarray:
    counts = np.maximum(table.values.sum(axis=0), 0.0)
    column = np.repeat(np.arange(len(sizes)), sizes)
    totals = np.bincount(column, weights=counts)[column]
    return np.asarray(np.log(np.maximum(counts / np.maximum(totals, 1e-3 * units), _LEAST)))


def _set(parameter: Tensor | nn.Parameter, values: np.ndarray) -> None:
    parameter.copy_(_tensor(values))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
