"""A release comes back from its files as it was, and files that are not what they should be are refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load, save

from common.errors import ConditionError, ExitCode, PrivShareError
from common.synthesis.release import FACTS, WEIGHTS, Release, load_release
from common.synthesis.rows import draw_units
from common.synthesis.synthesizer import Synthesizer
from tests.common.synthesis.releases import EVENTS, WINDOWS, make_release, study_of


def written(release: Release, folder: Path) -> Path:
    for name, body in release.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


@pytest.mark.parametrize("windows", [None, WINDOWS, EVENTS])
def test_a_release_comes_back_as_it_was(windows: Any, tmp_path: Path) -> None:
    release = make_release(study_of(windows=windows))
    again = load_release(written(release, tmp_path))
    assert again.study == release.study
    assert again.files() == release.files()
    units, same = (draw_units(one, rows=50, seed=1, device=torch.device("cpu")) for one in (release, again))
    pd.testing.assert_frame_equal(units.records, same.records)
    assert np.array_equal(units.values, same.values, equal_nan=True)


def test_a_release_says_of_its_windows_what_fixes_parameters_as_it_did_before_gaps_were_known(tmp_path: Path) -> None:
    facts = json.loads((written(make_release(study_of(windows=EVENTS)), tmp_path) / FACTS).read_text())
    assert set(facts["shape"]["sequence"]) == {"kind", "steps", "blocks", "sizes", "missing", "ordered", "states"}


def change_facts(how: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        facts = json.loads((folder / FACTS).read_text())
        how(facts)
        (folder / FACTS).write_text(json.dumps(facts))

    return change


def change_arrays(how: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = load((folder / WEIGHTS).read_bytes())
        how(arrays)
        (folder / WEIGHTS).write_bytes(save({name: np.ascontiguousarray(one) for name, one in arrays.items()}))

    return change


def spoil(name: str, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = value

    return change


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
    "no facts": (lambda folder: (folder / FACTS).unlink(), "cannot be read"),
    "cut weights": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "safetensors"),
    "a pickle": (lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04K\x01."), "is not a safetensors file"),
    "text": (lambda folder: (folder / FACTS).write_text("{"), "is not JSON"),
    "a list": (lambda folder: (folder / FACTS).write_text("[]"), "schema: expected privshare.generator/2"),
    "next version": (change_facts(lambda facts: facts.update(schema="privshare.generator/3")), "schema: expected"),
    "no study": (change_facts(lambda facts: facts.pop("study")), "study: expected an object"),
    "no shape": (change_facts(lambda facts: facts.pop("shape")), "shape: expected an object"),
    "another shape": (change_facts(lambda facts: facts["shape"].update(width=9)), "shape: does not follow"),
    "a study with a new key": (change_facts(lambda facts: facts["study"].update(run="rm")), "run: unknown key"),
    "fewer bins": (change_arrays(lambda arrays: arrays.pop("bins.0")), "bins.0: is missing"),
    "a bin too far": (change_arrays(spoil("bins.1", 40)), "bins.1: expected the bin of each cell"),
    "a negative bin": (change_arrays(spoil("bins.1", -1)), "bins.1: expected the bin of each cell"),
    "shares above 1": (change_arrays(spoil("within.2", 5.0)), "within.2: expected shares"),
    "no one-way table": (change_arrays(lambda arrays: arrays.pop("one_way.1")), "one_way.1: is missing"),
    "fewer counts": (
        change_arrays(lambda arrays: arrays.update({"one_way.1": arrays["one_way.1"][:, 1:]})),
        "one_way.1: expected a finite count of each class and bin",
    ),
    "nan in a table": (change_arrays(spoil("one_way.0", np.nan)), "one_way.0: expected a finite count"),
    "no noise": (change_arrays(spoil("one_way_stddev.0", 0.0)), "one_way_stddev.0: expected a number above 0"),
    "tables in the version before": (
        change_facts(lambda facts: facts.update(schema="privshare.generator/1")),
        "other parameters than expected",
    ),
    "no moves": (change_arrays(lambda arrays: arrays.pop("moves")), "moves: is missing"),
    "counts below 0": (change_arrays(spoil("label_counts", -1.0)), "label_counts: expected one for each class"),
    "nan counts": (change_arrays(spoil("label_counts", np.nan)), "label_counts: expected one for each class"),
    "no weight of the heads": (
        change_arrays(lambda arrays: arrays.pop("heads.bias")),
        "other parameters than expected",
    ),
    "one parameter more": (change_arrays(lambda arrays: arrays.update(more=np.ones(2))), "other parameters"),
    "doubles": (
        change_arrays(lambda arrays: arrays.update({"heads.bias": arrays["heads.bias"].astype(np.float64)})),
        "another shape or type",
    ),
    "nan weights": (change_arrays(spoil("heads.bias", np.nan)), "a parameter of the generator is not finite"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_files_that_are_not_what_they_should_be_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = written(make_release(), tmp_path)
    change, says = CHANGES[name]
    change(folder)
    with pytest.raises(PrivShareError) as caught:
        load_release(folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code in {ExitCode.RELEASE_INVALID, ExitCode.STUDY_INVALID}


def version_1(folder: Path) -> Path:
    """A folder as the version before wrote it: without one-way tables."""
    written(make_release(), folder)
    change_facts(lambda facts: facts.update(schema="privshare.generator/1"))(folder)

    def leave_out(arrays: dict[str, np.ndarray]) -> None:
        for name in [name for name in arrays if name.startswith("one_way")]:
            del arrays[name]

    change_arrays(leave_out)(folder)
    return folder


def test_moves_of_a_channel_have_all_their_buckets(tmp_path: Path) -> None:
    folder = written(make_release(study_of(windows=WINDOWS)), tmp_path)
    change_arrays(lambda arrays: arrays.update(moves=arrays["moves"][:, :, 1:]))(folder)
    with pytest.raises(PrivShareError, match=r"moves: expected an array of \(\d, 2, 15\)"):
        load_release(folder)


def test_a_release_of_the_version_before_is_read_and_gives_the_same_rows(tmp_path: Path) -> None:
    release, before = make_release(), load_release(version_1(tmp_path))
    assert before.one_way is None
    assert json.loads(before.files()[FACTS])["schema"] == "privshare.generator/1"
    units, same = (draw_units(one, rows=50, seed=1, device=torch.device("cpu")) for one in (release, before))
    pd.testing.assert_frame_equal(units.records, same.records)
    synthesizer = Synthesizer(before, torch.device("cpu"))
    assert len(synthesizer.sample(100, conditions=["age>=30"], seed=1)) == 100
    with pytest.raises(ConditionError, match="match: the release is of an older version, which holds no one-way"):
        synthesizer.sample(100, match=True, seed=1)
