"""The one training loop: generator steps against the critics. Sites and coordinator run the same.

It sees released statistics and random latents, never a record, so every step is post-processing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.models.critics import Cluster, fallen_silent
from common.models.generator import Generator, GeneratorShape

_WARM_UP = 5
_CLIP_NORM = 1.0
# A window of about twenty steps: shorter than the shortest run, so that nothing of the random start is left.
_EMA_DECAY = 0.95
# What a critic says of one batch is rough; that of about five is listened to.
_HEARD_DECAY = 0.8
# No normal quantile beyond this share is drawn: 0 and 1 have none.
_EDGE = 1e-12


@dataclass(frozen=True)
class Stretch:
    """A part of the training: so many steps, with the learning rate falling from `start` to `end`."""

    steps: int
    start: float
    end: float
    batch: int
    seed: int


class Latents:
    """Noise for batches of a generator's rows, its latents spread more evenly than by chance.

    A scrambled Sobol set is shifted, modulo 1, by a uniform vector that is fresh for each part of each batch, then
    mapped to normal quantiles. So each row is a standard normal, means over a part are unbiased, and parts are
    independent given the set, as the product of two halves in `MeasuredCritic.loss` needs; only their error is smaller.
    Source: Cranley and Patterson 1976 (random shifts); Owen 1995 (scrambling).
    """

    def __init__(self, shape: GeneratorShape, *, parts: int, rows: int, seed: int, device: torch.device) -> None:
        """Lay out the set.

        Args:
            shape: of the generator.
            parts: of a batch, one after the other, of equal size.
            rows: of a batch.
            seed: of the scrambling.
            device: where batches are wanted.
        """
        sobol = torch.quasirandom.SobolEngine(shape.latent, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        self._points = sobol.draw(rows // parts, dtype=torch.float64).to(device)  # (rows of a part, latent)
        self._parts, self._rest = parts, shape.noise - shape.latent

    def draw(self, random: torch.Generator) -> Tensor:
        """A batch, (rows, shape.noise): latents, then what else the generator needs, independent normals."""
        device, latent = self._points.device, self._points.shape[1]
        shifts = torch.rand(self._parts, 1, latent, generator=random, dtype=torch.float64, device=device)
        places = ((self._points + shifts) % 1.0).clamp(_EDGE, 1 - _EDGE)
        latents = torch.special.ndtri(places).float().view(-1, latent)
        rest = torch.randn(len(latents), self._rest, generator=random, device=device)
        return torch.cat([latents, rest], dim=1)


def schedule(peak: float, *, stretches: int) -> Iterator[tuple[float, float]]:
    """First and last learning rate of each stretch: a rise over the first tenth, then half a cosine down to zero."""

    def rate(progress: float) -> float:
        rise = min(1.0, 0.1 + progress / 0.1)
        return float(peak * rise * 0.5 * (1 + np.cos(np.pi * progress)))

    for number in range(stretches):
        yield rate(number / stretches), rate((number + 1) / stretches)


def train(
    generator: Generator,
    cluster: Cluster,
    stretch: Stretch,
    device: torch.device,
    *,
    averaged: Generator | None = None,
) -> float:
    """Train a generator in place for one stretch; returns the mean loss of the measured critics, in noise variances.

    A measured critic is silent while the generator is as near to its releases as the truth is, at one noise variance a
    cell and what chance adds: nearer, it would learn their noise.
    Source: Morozov 1966, the discrepancy principle.

    Args:
        generator: on `device`.
        cluster: the critics, on `device`.
        stretch: how long and how fast.
        device: where to compute.
        averaged: on `device`; follows the generator as an exponential moving average, which is what is published.
    """
    if stretch.steps == 0:
        return float("nan")
    random = torch.Generator(device=device).manual_seed(stretch.seed)
    classes = generator.shape.classes
    labels = torch.arange(classes, device=device).repeat_interleave(stretch.batch)  # (classes * batch,)
    optimiser = torch.optim.Adam(generator.parameters(), lr=stretch.start, betas=(0.9, 0.99))
    latents = Latents(generator.shape, parts=2 * classes, rows=len(labels), seed=stretch.seed, device=device)
    heard: dict[str, float] = {}
    total = 0.0
    for step in range(stretch.steps):
        fraction = step / stretch.steps
        warm = min(1.0, (step + 1) / _WARM_UP)
        for group in optimiser.param_groups:
            group["lr"] = warm * (stretch.start + (stretch.end - stretch.start) * fraction)
        noise = latents.draw(random)
        silent = fallen_silent(heard, cluster.noise_levels)
        loss, measured = cluster.loss(generator(noise, labels), labels, classes, random, silent=silent)
        said = {name: one.item() for name, one in measured.items()}
        heard = {name: one + _HEARD_DECAY * (heard.get(name, one) - one) for name, one in said.items()}
        total += cluster.fuse(measured).item()
        if loss.requires_grad:  # else all are silent
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(generator.parameters(), _CLIP_NORM)
            optimiser.step()
        if averaged is not None:
            _follow(averaged, generator)
    return total / stretch.steps


@torch.no_grad()
def _follow(averaged: Generator, generator: Generator) -> None:
    for mean, value in zip(averaged.parameters(), generator.parameters(), strict=True):
        mean.lerp_(value, 1 - _EMA_DECAY)


def parameters_of(generator: Generator) -> dict[str, np.ndarray]:
    """A generator's parameters by name, float32."""
    return {name: value.detach().cpu().numpy().copy() for name, value in generator.state_dict().items()}


def load_parameters(generator: Generator, arrays: Mapping[str, np.ndarray]) -> None:
    """Replace a generator's parameters.

    Raises:
        ValueError: names, shapes or types are not the generator's own.
    """
    own = generator.state_dict()
    if set(own) != set(arrays):
        raise ValueError("generator: other parameters than expected")
    for name, value in own.items():
        if arrays[name].shape != tuple(value.shape) or arrays[name].dtype != np.float32:
            raise ValueError("generator: a parameter has another shape or type than expected")
    generator.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def average(parameters: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The equal-weight mean of several generators' parameters, float32.

    Every site trains on the same released objective, so no site weighs more; numbers of records are private and are
    not needed.
    """
    return {
        name: np.mean([one[name].astype(np.float64) for one in parameters], axis=0).astype(np.float32)
        for name in parameters[0]
    }


def median(parameters: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The median of each parameter over several generators, float32; of an even number the mean of the middle two.

    Guarantees: as long as fewer than half of the generators were made up, by whoever knows all the others, each
    parameter lies between the least and the largest of the honest ones. Of one or two generators it is the mean, which
    guarantees nothing.
    Source: Yin, Chen, Ramchandran and Bartlett 2018, option I (coordinate-wise median).
    """
    return {
        name: np.median([one[name].astype(np.float64) for one in parameters], axis=0).astype(np.float32)
        for name in parameters[0]
    }
