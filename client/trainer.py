"""Generator steps at a site. It receives a request and returns parameters; real rows are out of its reach.

Everything that it works on, the request, was released with noise before. Nothing here imports the vault or a reader.
"""

import numpy as np
import torch

from common.errors import PolicyError
from common.models.critics import EMBEDDING, Adversary, make_cluster
from common.models.embedding import EmbeddingMeans, freeze
from common.models.generator import Generator, GeneratorShape
from common.models.neural import NeuralCritic, load_critic
from common.models.targets import Targets
from common.models.training import Stretch, load_parameters, parameters_of, train
from common.models.verdicts import Opening, heads_of
from common.study import Study
from common.wire.messages import Request
from common.wire.packing import CRITIC, GENERATOR, critic_shape_of, pack, shape_of, unpack, unpack_targets

_MOST_WEIGHT = 1000.0


def train_on_request(
    request: Request,
    study: Study,
    *,
    sizes: tuple[int, ...],
    device: torch.device,
    own: tuple[Targets, Adversary | None] | None = None,
) -> dict[str, np.ndarray]:
    """Load the generator that was sent, train it against the targets that were sent, return its parameters.

    Args:
        request: of kind "train", its options checked by the policy.
        study: this site's copy; the generator's and the batch's size come from it.
        sizes: bins of each column, then of each channel, no more than it has cells.
        device: where to compute.
        own: targets of this site alone, and its neural critic where that is heard, instead of those in the request.

    Raises:
        PolicyError: the arrays do not fit the study's generator.
    """
    shape = shape_of(study, sizes)
    generator = read_generator(request, shape)
    targets, adversary = own or (_read_targets(request, shape), _read_adversary(request, study, sizes, device))
    means = EmbeddingMeans(freeze(shape, study.digest()), shape, device) if EMBEDDING in targets.tables else None
    generator.to(device)
    first, last = request.options["learning_rates"]
    stretch = Stretch(request.options["steps"], first, last, study.model.batch, request.options["seed"])
    train(generator, make_cluster(targets, means, adversary, device), stretch, device)
    return pack(GENERATOR, parameters_of(generator))


def read_generator(request: Request, shape: GeneratorShape) -> Generator:
    """The generator in a request.

    Raises:
        PolicyError: its arrays do not fit the study's generator.
    """
    generator = Generator(shape)
    try:
        load_parameters(generator, unpack(GENERATOR, request.arrays))
    except ValueError:
        raise PolicyError("request.arrays: do not fit the generator of this study") from None
    return generator


def _read_targets(request: Request, shape: GeneratorShape) -> Targets:
    try:
        return unpack_targets(request.arrays, shape)
    except ValueError:
        raise PolicyError("request.arrays: do not fit the generator of this study") from None


def _read_adversary(request: Request, study: Study, sizes: tuple[int, ...], device: torch.device) -> Adversary | None:
    if "weights" not in request.options:
        return None
    critic = read_critic(request, study, sizes).to(device)
    heads = len(heads_of(critic))
    most = {"weights": _MOST_WEIGHT, "passing": 1.0, "passed": 1.0}
    opening = Opening(**{name: _read_heads(request, name, heads=heads, most=value) for name, value in most.items()})
    return Adversary(critic, opening)


def read_critic(request: Request, study: Study, sizes: tuple[int, ...]) -> NeuralCritic:
    """The neural critic in a request.

    Raises:
        PolicyError: its arrays do not fit the study's critic.
    """
    critic = NeuralCritic(critic_shape_of(study, shape_of(study, sizes)))
    try:
        load_critic(critic, unpack(CRITIC, request.arrays))
    except ValueError:
        raise PolicyError("request.arrays: do not fit the critic of this study") from None
    return critic


def _read_heads(request: Request, name: str, *, heads: int, most: float) -> tuple[float, ...]:
    numbers = request.options.get(name)
    if (
        not isinstance(numbers, list)
        or len(numbers) != heads
        or not all(isinstance(one, float) and 0 <= one <= most for one in numbers)
    ):
        raise PolicyError(f"request.{name}: expected a number from 0 to {most:g} for each head of the critic")
    return tuple(numbers)
