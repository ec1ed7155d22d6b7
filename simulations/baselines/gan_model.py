"""A conditional GAN over bins, made in the usual way: two networks, and their steps on real rows at one site.

It is what privshare is compared with. It trains on real rows without noise, so nothing here may run at a real site.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.data.queries import Coded
from common.models.generator import GeneratorShape
from common.models.training import Stretch
from common.models.verdicts import one_hot

_LATENT: Final = 128
_WIDTH: Final = 256
_BLOCKS: Final = 2
_CHANNELS: Final = 64
"""Of the generator's convolutions."""
_STEP_WIDTH: Final = 32
"""Of what the critic makes of one step; twice that after each convolution."""
_TEMPERATURE: Final = 0.5
_LEAK: Final = 0.2
_PENALTY: Final = 0.1
"""Weight of the gradient penalty R1, which is taken at every fourth step and then weighs four times as much."""
_PENALTY_EVERY: Final = 4
_BETAS: Final = (0.0, 0.9)
"""Adam begins anew in each round: without momentum and with a short memory it misses little of what it knew."""
_WARM_UP: Final = 5
_CHUNK: Final = 4096


class GanGenerator(nn.Module):
    """(latent, label) -> one-hot records, and windows where the study has them.

    Blocks of Linear, LayerNorm, ReLU whose outputs join their inputs; a Gumbel-softmax head a column, with hard samples
    and soft gradients. Windows: two up-sampling convolutions over the steps, then a head a channel and step.
    No BatchNorm: its running state would differ between sites.
    Sources: Xu et al. 2019 (CTGAN), section 4; Jang et al. 2017 (Gumbel-softmax).
    """

    is_within: Tensor

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        wide = _LATENT + shape.classes
        self.blocks = nn.ModuleList()
        for _ in range(_BLOCKS):
            self.blocks.append(nn.Sequential(nn.Linear(wide, _WIDTH), nn.LayerNorm(_WIDTH), nn.ReLU()))
            wide += _WIDTH
        self.heads = nn.Linear(wide, sum(shape.sizes))
        self.course = None if shape.sequence is None else _Course(wide, shape.sequence.steps, shape.sequence.sizes)
        self.register_buffer("is_within", _steps_of_lengths(shape), persistent=False)

    def forward(self, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A unit for each label.

        Args:
            labels: (rows,) int64.
            random: of latents and samples, on the labels' device.

        Returns:
            records (rows, record bins) and windows (rows, steps, channel bins) or None; one-hot, and all zero beyond a
            unit's last step.
        """
        latent = torch.randn(len(labels), _LATENT, generator=random, device=labels.device)
        hidden = torch.cat([latent, _one_hot_labels(labels, self.shape)], dim=1)
        for block in self.blocks:
            hidden = torch.cat([hidden, block(hidden)], dim=1)
        records = _sample(self.heads(hidden), self.shape.sizes, random)
        if self.course is None or self.shape.sequence is None:
            return records, None
        windows = _sample(self.course(hidden), self.shape.sequence.sizes, random)
        if self.shape.length_column is not None:
            begin = sum(self.shape.sizes[: self.shape.length_column])
            lengths = records[:, begin : begin + self.shape.sizes[self.shape.length_column]]
            windows = windows * (lengths @ self.is_within)[:, :, None]
        return records, windows


class _Course(nn.Module):
    """Logits of every channel at every step: coarse steps first, then finer ones, each beside its neighbours."""

    def __init__(self, wide: int, steps: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = steps
        self.begin = nn.Linear(wide, _CHANNELS * -(-steps // 4))
        self.convolutions = nn.ModuleList(nn.Conv1d(_CHANNELS, _CHANNELS, 3, padding=1) for _ in range(2))
        self.place = nn.Parameter(torch.zeros(steps, _CHANNELS))
        self.heads = nn.Linear(_CHANNELS, sum(sizes))
        self.whole = nn.Linear(wide, sum(sizes))

    def forward(self, hidden: Tensor) -> Tensor:
        course = self.begin(hidden).view(len(hidden), _CHANNELS, -1)  # (rows, channels, steps / 4)
        for convolution in self.convolutions:
            course = functional.relu(convolution(course.repeat_interleave(2, dim=2)))
        course = course[:, :, : self.steps].transpose(1, 2) + self.place  # (rows, steps, channels)
        logits: Tensor = self.heads(course) + self.whole(hidden)[:, None]
        return logits


class GanCritic(nn.Module):
    """The one discriminator: a score for each unit, above 0 for what it takes for real.

    A record enters as it is, a window through three convolutions of stride 2; then two hidden layers see both. The
    label is an input, and has a direction of its own along which units of its class are scored.
    Source: Miyato and Koyama 2018 (projection discriminator).
    """

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        wide = sum(shape.sizes) + shape.classes
        self.steps: nn.Linear | None = None
        self.convolutions = nn.ModuleList()
        if shape.sequence is not None:
            self.steps = nn.Linear(sum(shape.sequence.sizes), _STEP_WIDTH)
            left = shape.sequence.steps
            for inputs in (_STEP_WIDTH, 2 * _STEP_WIDTH, 2 * _STEP_WIDTH):
                self.convolutions.append(nn.Conv1d(inputs, 2 * _STEP_WIDTH, 3, stride=2, padding=1))
                left = -(-left // 2)
            wide += left * 2 * _STEP_WIDTH
        self.hidden = nn.ModuleList([nn.Linear(wide, _WIDTH), nn.Linear(_WIDTH, _WIDTH)])
        self.score = nn.Linear(_WIDTH, 1)
        self.directions = nn.Embedding(shape.classes, _WIDTH)
        nn.init.normal_(self.directions.weight, std=0.1)

    def forward(self, records: Tensor, windows: Tensor | None, labels: Tensor) -> Tensor:
        """Scores, (rows,); records and windows as a generator makes them."""
        seen = [records, _one_hot_labels(labels, self.shape)]
        if windows is not None and self.steps is not None:
            course = functional.leaky_relu(self.steps(windows), _LEAK).transpose(1, 2)
            for convolution in self.convolutions:
                course = functional.leaky_relu(convolution(course), _LEAK)
            seen.append(course.flatten(1))
        hidden = torch.cat(seen, dim=1)
        for layer in self.hidden:
            hidden = functional.leaky_relu(layer(hidden), _LEAK)
        score: Tensor = self.score(hidden)
        by_label: Tensor = (hidden * self.directions(labels)).sum(dim=1)
        return score[:, 0] + by_label


class Gan(nn.Module):
    """Both networks, under the names by which their parameters travel: `generator.` and `critic.`."""

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        self.generator = GanGenerator(shape)
        self.critic = GanCritic(shape)


def initialise(shape: GeneratorShape, *, seed: int) -> Gan:
    """Networks with weights drawn from a seed, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Gan(shape)


def arrays_of(network: nn.Module) -> dict[str, np.ndarray]:
    """Parameters by name, float32."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def load_arrays(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Replace a network's parameters.

    Raises:
        ValueError: names, shapes or types are not the network's own.
    """
    own = {name: (tuple(value.shape), np.dtype(np.float32)) for name, value in network.state_dict().items()}
    if {name: (array.shape, array.dtype) for name, array in arrays.items()} != own:
        raise ValueError("network: other parameters than expected")
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def train(gan: Gan, real: Coded, weights: np.ndarray, stretch: Stretch, device: torch.device) -> None:
    """Train both networks in place on real rows for one stretch: each step one of the critic, one of the generator.

    The loss is the non-saturating one of Goodfellow et al. 2014 with the gradient penalty R1 of Mescheder et al. 2018.
    Fakes have the labels of the real rows beside them, and one batch of fakes serves both networks.

    Args:
        gan: on `device`.
        real: rows in bins; none -> nothing is trained.
        weights: (rows,), above 0; rows are drawn with replacement, in proportion to them.
        stretch: how long and how fast.
        device: where to compute.
    """
    if not len(real.labels):
        return
    rows = np.random.default_rng(stretch.seed)
    random = torch.Generator(device=device).manual_seed(stretch.seed)
    of_critic = torch.optim.Adam(gan.critic.parameters(), lr=stretch.start, betas=_BETAS)
    of_generator = torch.optim.Adam(gan.generator.parameters(), lr=stretch.start, betas=_BETAS)
    up_to = np.cumsum(weights)
    for step in range(stretch.steps):
        warm = min(1.0, (step + 1) / _WARM_UP)
        for group in (*of_critic.param_groups, *of_generator.param_groups):
            group["lr"] = warm * (stretch.start + (stretch.end - stretch.start) * step / stretch.steps)
        drawn = np.searchsorted(up_to, rows.random(stretch.batch) * up_to[-1], side="right")
        records, windows, labels = _take(real, np.minimum(drawn, len(up_to) - 1), gan.shape, device)
        fakes, courses = gan.generator(labels, random)

        is_penalised = step % _PENALTY_EVERY == 0
        inputs = [one.requires_grad_(is_penalised) for one in (records, windows) if one is not None]
        scores = gan.critic(records, windows, labels)
        of_fakes = gan.critic(fakes.detach(), None if courses is None else courses.detach(), labels)
        loss = functional.softplus(-scores).mean() + functional.softplus(of_fakes).mean()
        if is_penalised:
            slopes = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
            squares = torch.stack([slope.square().sum() for slope in slopes]).sum() / len(labels)
            loss = loss + 0.5 * _PENALTY * _PENALTY_EVERY * squares
        of_critic.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        of_critic.step()

        gan.critic.requires_grad_(False)
        loss = functional.softplus(-gan.critic(fakes, courses, labels)).mean()
        of_generator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        of_generator.step()
        gan.critic.requires_grad_(True)


@torch.no_grad()
def draw(
    generator: GanGenerator, labels: np.ndarray, *, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """One unit for each label, as `common.models.generator.draw_bins` gives them.

    Returns:
        records (rows, columns) int64; windows (rows, steps, channels) int64, -1 beyond a unit's last step, or None.
    """
    random = torch.Generator(device=device).manual_seed(seed)
    shape = generator.shape
    records, windows = [np.empty((0, len(shape.sizes)), dtype=np.int64)], []
    for begin in range(0, len(labels), _CHUNK):
        classes = torch.from_numpy(np.ascontiguousarray(labels[begin : begin + _CHUNK])).to(device)
        fakes, courses = generator(classes, random)
        records.append(_bins_of(fakes, shape.sizes))
        if courses is not None and shape.sequence is not None:
            is_within = courses.sum(dim=2, keepdim=True).cpu().numpy() > 0
            windows.append(np.where(is_within, _bins_of(courses, shape.sequence.sizes), -1))
    if shape.sequence is None:
        return np.concatenate(records), None
    empty = np.empty((0, shape.sequence.steps, len(shape.sequence.sizes)), dtype=np.int64)
    return np.concatenate(records), np.concatenate([empty, *windows])


def _steps_of_lengths(shape: GeneratorShape) -> Tensor:
    """Whether a step is within each number of steps, (bins of the length column, steps), 0 or 1."""
    if shape.length_column is None or shape.sequence is None:
        return torch.ones(1, 0)
    lengths = shape.fewest + torch.arange(shape.sizes[shape.length_column])
    return (torch.arange(shape.sequence.steps) < lengths[:, None]).float()


def _one_hot_labels(labels: Tensor, shape: GeneratorShape) -> Tensor:
    return functional.one_hot(labels, shape.classes).float()


def _sample(logits: Tensor, sizes: tuple[int, ...], random: torch.Generator) -> Tensor:
    """One-hot samples of each group of the last dimension, whose gradients are those of a softmax."""
    uniform = torch.rand(logits.shape, generator=random, device=logits.device).clamp_(1e-20, 1 - 1e-7)
    perturbed = (logits - uniform.log_().neg_().log_()) / _TEMPERATURE
    samples = []
    for group in torch.split(perturbed, list(sizes), dim=-1):
        soft = torch.softmax(group, dim=-1)
        hard = functional.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)
        # In this order the sum is exactly 0 or 1.
        samples.append(hard + (soft - soft.detach()))
    return torch.cat(samples, dim=-1)


def _bins_of(samples: Tensor, sizes: tuple[int, ...]) -> np.ndarray:
    """The bin of each group of the last dimension, (..., groups) int64."""
    return (
        torch.stack([group.argmax(dim=-1) for group in torch.split(samples, list(sizes), dim=-1)], dim=-1).cpu().numpy()
    )


def _take(
    real: Coded, rows: np.ndarray, shape: GeneratorShape, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Some real rows as the critic sees them: records, windows and labels."""
    some = Coded(real.labels[rows], real.records[rows], None if real.windows is None else real.windows[rows])
    records, windows = one_hot(some, shape)
    return (
        torch.from_numpy(records).to(device).float(),
        None if windows is None else torch.from_numpy(windows).to(device).float(),
        torch.from_numpy(some.labels).to(device),
    )
