"""What generators compute on."""

import re

import torch

from common.errors import ExitCode, StudyError


def device_named(name: str) -> torch.device:
    """A device of this machine: cpu, cuda or cuda:N.

    Raises:
        StudyError: it is none, or this machine does not have it.
    """
    usable = re.fullmatch(r"cpu|cuda(:\d+)?", name) is not None
    try:
        torch.zeros(1, device=name if usable else "cpu")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise StudyError(f"device={name}: not a device of this machine; expected cpu, cuda or cuda:N", ExitCode.USAGE)
    return torch.device(name)
