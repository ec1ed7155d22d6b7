"""Parts of an evaluation: each under its name, on the processes that were asked for, and a fault is not lost."""

import os
import time
from functools import partial

import numpy as np
import pytest
import torch

from common.errors import ExitCode, SchemaError
from common.evaluation.parts import Part, compute


def told(parts: dict[str, Part], processes: int) -> tuple[dict[str, object], list[str]]:
    ended: list[str] = []
    return compute(parts, processes=processes, on_part=ended.append), ended


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_each_result_has_the_name_of_its_part_whichever_ends_first(processes: int) -> None:
    def work(seconds: float, result: int) -> int:
        time.sleep(seconds)
        return result

    found, ended = told({"long": partial(work, 0.5, 1), "short": partial(work, 0, 2)}, processes)
    assert list(found.items()) == [("long", 1), ("short", 2)]
    assert sorted(ended) == ["long", "short"]


def test_one_process_is_this_one_and_more_are_others_with_one_thread_each() -> None:
    def look() -> tuple[int, int]:
        return os.getpid(), torch.get_num_threads()

    assert told({"a": look}, 1)[0]["a"][0] == os.getpid()  # type: ignore[index]
    found, _ = told({str(number): look for number in range(4)}, 2)
    assert {threads for _, threads in found.values()} == {1}  # type: ignore[misc, attr-defined]
    assert os.getpid() not in {process for process, _ in found.values()}  # type: ignore[misc, attr-defined]


def test_a_part_cannot_change_what_another_reads() -> None:
    shared = np.zeros(1_000_000)

    def spoil() -> float:
        shared[0] = 1.0
        return float(shared[0])

    with pytest.raises(ValueError, match="read-only"):
        told({"spoil": spoil, "look": partial(float, shared[1])}, 2)
    assert shared[0] == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_keeps_its_line_and_its_exit_code(processes: int) -> None:
    def refuse() -> None:
        raise SchemaError("age: no", ExitCode.CONSTANT_COLUMN)

    with pytest.raises(SchemaError, match=r"^age: no$") as caught:
        told({"refuse": refuse, "other": os.getpid}, processes)
    assert caught.value.code == ExitCode.CONSTANT_COLUMN


def test_no_parts_are_no_results() -> None:
    assert told({}, 2) == ({}, [])
