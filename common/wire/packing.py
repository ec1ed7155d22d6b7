"""How generators, targets and bins lie in the arrays of a message or a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from common.models.critics import Targets
from common.models.generator import GeneratorShape
from common.study import Study

GENERATOR = "generator."
_TARGETS = "targets."
_BINS = "bins."


def shape_of(study: Study, sizes: Sequence[int]) -> GeneratorShape:
    """The shape of the study's generator over so many bins a column."""
    model = study.model
    return GeneratorShape(tuple(sizes), len(study.label_values), model.latent, model.width, model.blocks)


def pack(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names with a prefix."""
    return {prefix + name: array for name, array in arrays.items()}


def unpack(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def pack_targets(targets: Targets) -> dict[str, np.ndarray]:
    """Targets as float32 arrays."""
    return {_TARGETS + one.name: getattr(targets, one.name).astype(np.float32) for one in fields(targets)}


def unpack_targets(arrays: Mapping[str, np.ndarray], shape: GeneratorShape) -> Targets:
    """Targets that fit a generator.

    Raises:
        ValueError: an array is absent or of another shape.
    """
    bins, classes = sum(shape.sizes), shape.classes
    expected = {
        "one_way": (classes, bins),
        "one_way_precision": (bins,),
        "pairs": (classes, bins, bins),
        "pairs_precision": (bins, bins),
        "label_counts": (classes,),
    }
    found = unpack(_TARGETS, arrays)
    if {name: array.shape for name, array in found.items()} != expected:
        raise ValueError("targets: do not fit the generator")
    return Targets(**found)


def pack_bins(bins: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The map from cells to bins of each column, by the column's position."""
    return {f"{_BINS}{position}": bin_of for position, bin_of in enumerate(bins)}


def unpack_bins(arrays: Mapping[str, np.ndarray], columns: int) -> list[np.ndarray]:
    """The maps of so many columns.

    Raises:
        ValueError: a map is absent, or one is left over.
    """
    found = unpack(_BINS, arrays)
    if set(found) != {str(position) for position in range(columns)}:
        raise ValueError("bins: expected one map a column")
    return [found[str(position)] for position in range(columns)]
