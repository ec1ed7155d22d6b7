"""What CTGAN's steps take, in an environment of its own: `python ctgan_steps.py table.csv discrete.json out.json ...`.

It stands alone, for a peer's environment holds no privshare. Its networks and its batch are as they come. It writes
processor seconds of one thread, as JSON: of reading the table and encoding it, its modes fitted before; of training
discriminator and generator once each with a thousand rows; of drawing rows.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctgan.synthesizers.ctgan
import numpy as np
import pandas as pd
import torch
from ctgan import CTGAN
from ctgan.data_transformer import DataTransformer

_FITTED = 20_000
"""Rows of which it learns its modes and trains: more only take longer."""
_EPOCHS = 3


def best(run: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the fastest of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def fitted(rows: pd.DataFrame, discrete: list[str]) -> Any:
    """A transformer whose modes are fitted once and for all, and that encodes in this thread alone."""
    made = DataTransformer()
    made.fit(rows, discrete)
    made.fit = lambda *_: None
    made.transform = functools.partial(encode, made)
    return made


def encode(transformer: Any, rows: pd.DataFrame) -> np.ndarray:
    """As it does, column after column."""
    # No public part of it stays in one thread.
    columns = transformer._synchronous_transform(rows, transformer._column_transform_info_list)  # noqa: SLF001
    return np.concatenate(columns, axis=1).astype(float)


def main() -> None:
    """Measure three steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("discrete", type=Path, help="JSON: names of the columns of categories")
    parser.add_argument("out", type=Path, help="where the seconds go")
    parser.add_argument("--rows", type=int, required=True, help="rows to draw")
    parser.add_argument("--repeats", type=int, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    discrete = json.loads(asked.discrete.read_text())

    def read(rows: int | None = None) -> pd.DataFrame:
        return pd.read_csv(asked.table, dtype=dict.fromkeys(discrete, str), keep_default_na=False, nrows=rows)

    some = read(_FITTED)
    modes = fitted(some, discrete)
    ctgan.synthesizers.ctgan.DataTransformer = lambda: modes

    def trained(epochs: int) -> CTGAN:
        made = CTGAN(epochs=epochs, enable_gpu=False)
        made.fit(some, discrete)
        return made

    # What comes before the first step, and after the last one, is in both.
    long, short = (best(functools.partial(trained, epochs), asked.repeats) for epochs in (1 + _EPOCHS, 1))
    model = trained(1)
    found = {
        "encode": best(lambda: modes.transform(read()), asked.repeats),
        "train a thousand": (long - short) / _EPOCHS / len(some) * 1000,
        "sample": best(lambda: model.sample(asked.rows), asked.repeats),
    }
    asked.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
