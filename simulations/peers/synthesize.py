"""One peer makes one table, in an environment of its own: `python synthesize.py aim table.csv sizes.json out.csv ...`.

It stands alone, for a peer's environment holds no privshare. Tables are whole numbers from 0 with a header line; how
many each column may hold is public, and stands in a file of its own.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

Fit = Callable[[pd.DataFrame, dict[str, int], argparse.Namespace], pd.DataFrame]


def graphical(pipeline: str, **options: Any) -> Fit:
    """A graphical model of dpmm, by its pipeline's name there."""

    def fit(table: pd.DataFrame, sizes: dict[str, int], asked: argparse.Namespace) -> pd.DataFrame:
        import dpmm.pipelines  # noqa: PLC0415 (each environment has its own peer alone)

        made = getattr(dpmm.pipelines, pipeline)(
            epsilon=asked.epsilon, delta=asked.delta, disable_processing=True, n_jobs=1, **options
        )
        made.fit(table, domain=sizes, random_state=asked.seed)
        drawn: pd.DataFrame = made.generate(n_records=asked.rows, random_state=asked.seed)
        return drawn

    return fit


def autoregressive(table: pd.DataFrame, _: dict[str, int], asked: argparse.Namespace) -> pd.DataFrame:
    """TabularARGN with private gradients; it stops when epsilon is spent, or by a loss that costs it nothing."""
    from mostlyai.engine import TabularARGN  # noqa: PLC0415 (each environment has its own peer alone)

    made = TabularARGN(
        differential_privacy={"max_epsilon": asked.epsilon, "delta": asked.delta, "value_protection_epsilon": None},
        value_protection=False,
        tgt_encoding_types=dict.fromkeys(table.columns, "TABULAR_CATEGORICAL"),
        device="cpu",
        random_state=asked.seed,
    )
    made.fit(table.astype(str))
    drawn: pd.DataFrame = made.sample(asked.rows)
    return drawn.astype(int)


def adaptive(table: pd.DataFrame, sizes: dict[str, int], asked: argparse.Namespace) -> pd.DataFrame:
    """AIM with a model and rounds as asked. As it comes, 80 MB and 16 rounds a column, it takes hours a table."""
    options = {"n_iters": 200, "rounds": asked.aim_rounds}
    return graphical("AIMPipeline", max_model_size=asked.aim_size, gen_kwargs=options)(table, sizes, asked)


def smartnoise(synthesizer: str, style: str) -> Fit:
    """A synthesizer of SmartNoise, by its name there; it takes no seed.

    style: of its encoding, which hears what codes there are from a table without a real row.
    """

    def fit(table: pd.DataFrame, sizes: dict[str, int], asked: argparse.Namespace) -> pd.DataFrame:
        from snsynth import Synthesizer  # noqa: PLC0415 (each environment has its own peer alone)
        from snsynth.transform import TableTransformer  # noqa: PLC0415

        codes = pd.DataFrame({name: [row % size for row in range(max(sizes.values()))] for name, size in sizes.items()})
        encoding = TableTransformer.create(codes, style=style, categorical_columns=list(sizes))
        encoding.fit(codes)
        made = Synthesizer.create(synthesizer, epsilon=asked.epsilon, delta=asked.delta)
        made.fit(table[list(sizes)], transformer=encoding)
        drawn: pd.DataFrame = made.sample(asked.rows)
        return drawn

    return fit


PEERS: Final[Mapping[str, Fit]] = {
    "aim": adaptive,
    "mst": graphical("MSTPipeline"),
    "privbayes": graphical("PrivBayesPipeline"),
    "tabularargn": autoregressive,
    "mst-smartnoise": smartnoise("mst", "cube"),
    "dpctgan": smartnoise("dpctgan", "gan"),
}
"""By name."""


def main() -> None:
    """Read a table, write another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("table", type=Path, help="real rows")
    parser.add_argument("sizes", type=Path, help="JSON: how many codes each column has")
    parser.add_argument("out", type=Path, help="where the synthetic rows go")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--delta", type=float, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--aim-size", type=float, default=4, help="MB of AIM's model at most")
    parser.add_argument("--aim-rounds", type=int, default=60, help="how many tables AIM measures")
    asked = parser.parse_args()
    sizes = json.loads(asked.sizes.read_text())
    drawn = PEERS[asked.peer](pd.read_csv(asked.table), sizes, asked)
    drawn[list(sizes)].to_csv(asked.out, index=False)


if __name__ == "__main__":
    main()
