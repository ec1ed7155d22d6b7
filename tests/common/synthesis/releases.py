"""A release without any training: columns of every kind, a generator with weights of a seed."""

from typing import Any

import numpy as np

from common.data.binning import Binning
from common.data.changes import BUCKETS
from common.data.encoding import make_grids
from common.models.generator import initialise
from common.study import STEPS, Study, parse_study
from common.synthesis.release import OneWay, Release
from common.wire.packing import shape_of

PLAIN: dict[str, Any] = {
    "name": "toy",
    "unit": {"name": "person", "key": "person"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green", "=2+3", "a,b:0.5"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 90, "cells": 20, "missing": True},
        "pay": {"type": "continuous", "min": -5, "max": 5, "decimals": 2, "cells": 16},
        "dose": {"type": "continuous", "min": 0, "max": 1, "cells": 8},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-6},
    "model": {"latent": 3, "width": 16, "blocks": 1},
}
WINDOWS: dict[str, Any] = {
    "layout": "grid",
    "length": 4,
    "time": {"column": "hour"},
    "step": 1,
    "channels": {"pulse": {"type": "integer", "min": 40, "max": 200, "cells": 12, "missing": True}},
}

EVENTS: dict[str, Any] = {
    "layout": "events",
    "length": 5,
    "time": {"column": "minute"},
    "ties": "keep",
    "gap": "since",
    "channels": {
        "stage": {"type": "categorical", "categories": ["one", "two", "three"], "missing": True},
        "since": {"type": "integer", "min": 0, "max": 90, "cells": 12, "missing": True},
        "pulse": {"type": "integer", "min": 40, "max": 200, "cells": 12, "missing": True},
    },
}


def study_of(**more: Any) -> Study:
    return parse_study(PLAIN | more, source="test")


def make_release(study: Study | None = None, *, seed: int = 0) -> Release:
    """Bins of two or three cells each; cells of a bin have different shares in each class."""
    study = study_of() if study is None else study
    random = np.random.default_rng(seed)
    grids = make_grids(study.measured) + make_grids(study.channels)
    binnings = []
    for grid in grids:
        values = np.arange(grid.n_values) // (3 if grid.is_ordered and grid.name != STEPS else 1)
        bin_of = np.append(values, [values.max() + 1] * grid.column.missing).astype(np.int64)
        within = random.random((2, len(bin_of))) + 0.1
        totals = np.stack([np.bincount(bin_of, weights=own) for own in within])
        binnings.append(Binning(bin_of, within / totals[:, bin_of]))
    generator = initialise(shape_of(study, [binning.n_bins for binning in binnings]), seed=seed)
    # Sharper than an untrained one, so that latents matter.
    for parameter in generator.parameters():
        parameter.data *= 1.6
    moves = np.zeros((len(study.channels), 2, BUCKETS))
    units = np.array([70.0, 30.0])
    tables = [units[:, None] * random.dirichlet(np.ones(one.n_bins), 2) for one in binnings[: len(study.measured)]]
    one_way = OneWay(tuple(tables), tuple(np.full(table.shape[1], 2.0) for table in tables))
    generator.requires_grad_(requires_grad=False)
    return Release(study, generator, tuple(binnings), moves, units, one_way)
