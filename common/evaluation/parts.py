"""Parts of an evaluation, each computed by itself: in turn, or on several processes at once."""

from collections.abc import Callable, Mapping
from typing import Any

from joblib import Parallel, delayed, parallel_config

Part = Callable[[], Any]
"""Pickles; reads what it was made with and changes none of it."""


def compute(parts: Mapping[str, Part], *, processes: int, on_part: Callable[[str], None]) -> dict[str, Any]:
    """What every part returns, by its name.

    A part on a process of its own has one thread, so that processes and threads together are as many as were asked for.

    Guarantees: the same results for any number of processes, if each part's follow from what it was made with and from
        one thread's order of sums.

    Args:
        parts: by name; begun in this order, so put what takes long first.
        processes: at most so many at a time; 1: no other than this one.
        on_part: is told which part has ended.

    Raises:
        Exception: whatever a part raised; the others are given up.
    """
    found = {}
    with parallel_config(backend="loky", inner_max_num_threads=1) if processes > 1 else parallel_config():
        ended = Parallel(n_jobs=min(processes, max(1, len(parts))), return_as="generator_unordered")(
            delayed(_named)(name, part) for name, part in parts.items()
        )
        for name, result in ended:
            on_part(name)
            found[name] = result
    return {name: found[name] for name in parts}


def _named(name: str, part: Part) -> tuple[str, Any]:
    return name, part()
