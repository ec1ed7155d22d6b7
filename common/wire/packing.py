"""How generators, targets and bins lie in the arrays of a message or a checkpoint."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.data.schema import CategoricalColumn, IntegerColumn
from common.models.critics import EMBEDDING
from common.models.embedding import FEATURES
from common.models.generator import GeneratorShape
from common.models.neural import CriticShape
from common.models.sequences import SequenceShape
from common.models.targets import Groups, Target, Targets, table_shapes
from common.study import STEPS, Study

GENERATOR = "generator."
CRITIC = "critic."
_TARGETS = "targets."
_COUNTS = "label_counts"
_RECORD_GROUPS, _CHANNEL_GROUPS = "groups.records", "groups.channels"
_BINS = "bins."
_GROUPS = "group_of_bin."
_LATENT, _LATENT_WITH_WINDOWS = 16, 32


def shape_of(study: Study, sizes: Sequence[int]) -> GeneratorShape:
    """The shape of the study's generator over so many bins a column, then a channel."""
    model, windows, columns = study.model, study.windows, study.measured
    sequence = None
    if windows is not None:
        rules = list(windows.channels.values())
        sequence = SequenceShape(
            kind="paths" if windows.layout == "grid" else "states",
            steps=windows.length,
            blocks=windows.blocks,
            sizes=tuple(sizes[len(columns) :]),
            missing=tuple(rule.missing for rule in rules),
            ordered=tuple(not isinstance(rule, CategoricalColumn) for rule in rules),
            states=model.states,
            gap=None if windows.gap is None else list(windows.channels).index(windows.gap),
            late=windows.gap is not None and windows.longer == "last",
        )
    steps = columns.get(STEPS)
    return GeneratorShape(
        tuple(sizes[: len(columns)]),
        len(study.label_values),
        model.latent or (_LATENT if windows is None else _LATENT_WITH_WINDOWS),
        model.width,
        model.blocks,
        model.body,
        sequence,
        list(columns).index(STEPS) if isinstance(steps, IntegerColumn) else None,
        steps.min if isinstance(steps, IntegerColumn) else 0,
    )


def critic_shape_of(study: Study, shape: GeneratorShape) -> CriticShape:
    """The shape of the study's neural critic beside its generator's."""
    sequence, network = shape.sequence, study.critic
    return CriticShape(
        record_bins=sum(shape.sizes),
        steps=sequence.steps if sequence else 0,
        step_bins=sum(sequence.sizes) if sequence else 0,
        classes=shape.classes,
        width=network.width,
        channels=network.width,
        semantic=network.heads != "temporal",
        temporal=network.heads != "semantic" and sequence is not None,
    )


def pack(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names with a prefix."""
    return {prefix + name: array for name, array in arrays.items()}


def unpack(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def pack_targets(targets: Targets) -> dict[str, np.ndarray]:
    """Targets as float32 arrays."""
    arrays = {f"{_TARGETS}{_COUNTS}": targets.label_counts}
    for name, target in targets.tables.items():
        arrays[f"{_TARGETS}{name}.values"] = target.values
        arrays[f"{_TARGETS}{name}.precision"] = target.precision
    groups = {_RECORD_GROUPS: targets.groups.records, _CHANNEL_GROUPS: targets.groups.channels}
    return {name: array.astype(np.float32) for name, array in arrays.items()} | groups


def unpack_targets(arrays: Mapping[str, np.ndarray], shape: GeneratorShape) -> Targets:
    """Targets that fit a generator.

    Raises:
        ValueError: an array is absent or of another shape.
    """
    records = _check_groups(arrays.get(_RECORD_GROUPS), sum(shape.sizes))
    channels = _check_groups(arrays.get(_CHANNEL_GROUPS), sum(shape.sequence.sizes) if shape.sequence else 0)
    column = np.repeat(np.arange(len(shape.sizes)), shape.sizes)
    begins = np.diff(records, prepend=-1) > 0
    if np.any(np.diff(column, prepend=-1) > begins):
        raise ValueError("groups: expected none that joins bins of two columns")
    groups = Groups(records, channels, column[begins])
    found = unpack(_TARGETS, arrays)
    shapes = table_shapes(shape, groups)
    expected: dict[str, tuple[int, ...]] = {_COUNTS: (shape.classes,)}
    for name, dense in shapes.items():
        expected |= {f"{name}.values": (shape.classes, *dense), f"{name}.precision": dense}
    names = [str(name) for name in shapes]
    if f"{EMBEDDING}.values" in found:
        names.append(EMBEDDING)
        expected |= {f"{EMBEDDING}.values": (shape.classes, 2 * FEATURES), f"{EMBEDDING}.precision": (2 * FEATURES,)}
    if {name: array.shape for name, array in found.items()} != expected:
        raise ValueError("targets: do not fit the generator")
    tables = {name: Target(found[f"{name}.values"], found[f"{name}.precision"]) for name in names}
    return Targets(tables, found[_COUNTS], groups)


def _check_groups(groups: np.ndarray | None, bins: int) -> np.ndarray:
    if groups is None or groups.dtype != np.int64 or groups.shape != (bins,):
        raise ValueError("groups: expected one for each bin")
    if bins and (groups[0] != 0 or not bool(np.isin(np.diff(groups), (0, 1)).all())):
        raise ValueError("groups: expected numbers that rise by one")
    return groups


def pack_bins(bins: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The map from cells to bins of each column, then of each channel, by position."""
    return {f"{_BINS}{position}": bin_of for position, bin_of in enumerate(bins)}


def unpack_bins(arrays: Mapping[str, np.ndarray], columns: int) -> list[np.ndarray]:
    """The maps of so many columns and channels.

    Raises:
        ValueError: a map is absent, or one is left over.
    """
    return _unpack_maps(_BINS, arrays, columns)


def pack_groups(groups: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The map from bins to groups of each column, then of each channel, by position."""
    return {f"{_GROUPS}{position}": group for position, group in enumerate(groups)}


def unpack_groups(arrays: Mapping[str, np.ndarray], columns: int) -> list[np.ndarray]:
    """The maps of so many columns and channels.

    Raises:
        ValueError: a map is absent, or one is left over.
    """
    return _unpack_maps(_GROUPS, arrays, columns)


def _unpack_maps(prefix: str, arrays: Mapping[str, np.ndarray], columns: int) -> list[np.ndarray]:
    found = unpack(prefix, arrays)
    if set(found) != {str(position) for position in range(columns)}:
        raise ValueError("bins: expected one map a column")
    return [found[str(position)] for position in range(columns)]
