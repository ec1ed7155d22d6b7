"""Generator steps at a site. It receives a request and returns parameters; real rows are out of its reach.

Everything that it works on, the request, was released with noise before. Nothing here imports the vault or a reader.
"""

import numpy as np
import torch

from common.errors import PolicyError
from common.models.critics import StatisticalCritic
from common.models.generator import Generator
from common.models.training import Stretch, load_parameters, parameters_of, train
from common.study import Study
from common.wire.messages import Request
from common.wire.packing import GENERATOR, pack, shape_of, unpack, unpack_targets


def train_on_request(
    request: Request, study: Study, *, sizes: tuple[int, ...], device: torch.device
) -> dict[str, np.ndarray]:
    """Load the generator that was sent, train it against the targets that were sent, return its parameters.

    Args:
        request: of kind "train", its options checked by the policy.
        study: this site's copy; the generator's and the batch's size come from it.
        sizes: bins of each column, no more than the column has cells.
        device: where to compute.

    Raises:
        PolicyError: the arrays do not fit the study's generator.
    """
    shape = shape_of(study, sizes)
    generator = Generator(shape)
    try:
        load_parameters(generator, unpack(GENERATOR, request.arrays))
        targets = unpack_targets(request.arrays, shape)
    except ValueError:
        raise PolicyError("request.arrays: do not fit the generator of this study") from None
    generator.to(device)
    first, last = request.options["learning_rates"]
    stretch = Stretch(request.options["steps"], first, last, study.model.batch, request.options["seed"])
    train(generator, StatisticalCritic(targets, device), stretch, device)
    return pack(GENERATOR, parameters_of(generator))
