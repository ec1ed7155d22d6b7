"""What a run can go on from: written whole or not at all, and nothing damaged is taken for a checkpoint."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from common.errors import CheckpointError, ExitCode, OutputError
from server.checkpoints import (
    CHECKPOINT_SCHEMA,
    Checkpoint,
    latest_facts,
    load_latest,
    save_checkpoint,
    write_file,
    write_json,
)

FACTS: dict[str, Any] = {"run": "r-1", "seed": 7, "monitor": None, "history": [{"loss": 0.1, "trainers": ["a"]}]}
ARRAYS = {
    "counts": np.arange(-3, 9, dtype=np.int64),
    "weights": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "variance": np.array([0.1, 1e300, -0.0]),
    "none": np.zeros((0, 3)),
    "scalar": np.array(2.5),
}


NONE = "no checkpoint is whole"


class CrashError(BaseException):
    """The machine goes down: nothing catches it."""


def refuse(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_latest(folder)
    message = str(refused.value)
    assert refused.value.code == ExitCode.RESUME_IMPOSSIBLE
    assert message.splitlines() == [message]
    assert message.startswith(str(folder))
    return message


def latest(folder: Path) -> Checkpoint:
    found = load_latest(folder)
    assert found is not None
    return found


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, Checkpoint(FACTS, ARRAYS))
    found = latest(tmp_path)
    assert found.facts == FACTS
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].tobytes() == array.tobytes()
        assert found.arrays[name].shape in (array.shape, (1,))  # a number comes back as a vector of one


def test_arrays_that_lie_otherwise_in_memory_come_back_as_they_read(tmp_path: Path) -> None:
    whole = np.arange(24.0).reshape(4, 6)
    save_checkpoint(
        tmp_path, 1, Checkpoint({}, {"transposed": whole.T, "sliced": whole[:, ::2], "reversed": whole[::-1]})
    )
    found = latest(tmp_path).arrays
    assert np.array_equal(found["transposed"], whole.T)
    assert np.array_equal(found["sliced"], whole[:, ::2])
    assert np.array_equal(found["reversed"], whole[::-1])


def test_the_newest_is_loaded_and_a_folder_without_any_has_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None
    for step in (1, 12, 9, 10_004, 120):
        save_checkpoint(tmp_path, step, Checkpoint({"step": step}, {}))
    (tmp_path / "step-99999.safetensors.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    assert latest(tmp_path).facts == {"step": 10_004}


def test_of_a_long_run_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(1, 101):
        save_checkpoint(tmp_path, step, Checkpoint({"step": step}, {}))
    assert sorted(int(path.name[5:10]) for path in tmp_path.iterdir()) == list(range(69, 101))
    assert latest(tmp_path).facts == {"step": 100}


def test_the_same_step_again_replaces_the_file(tmp_path: Path) -> None:
    for run in ("first", "second"):
        save_checkpoint(tmp_path, 3, Checkpoint({"run": run}, {}))
    assert latest(tmp_path).facts == {"run": "second"}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 50, 0.5, 0.9, -1])
def test_in_place_of_a_truncated_checkpoint_the_one_before_is_loaded_and_the_log_says_so(
    tmp_path: Path, keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, Checkpoint({"older": True}, {}))
    for step in (2, 3):
        save_checkpoint(tmp_path, step, Checkpoint(FACTS, ARRAYS))
        path = tmp_path / f"step-{step:05d}.safetensors"
        body = path.read_bytes()
        path.write_bytes(body[: int(keep * len(body)) if isinstance(keep, float) else keep])
    assert latest(tmp_path).facts == {"older": True}
    assert [record.message.split("/")[-1] for record in caplog.records] == [
        "step-00003.safetensors",
        "step-00002.safetensors",
    ]
    save_checkpoint(tmp_path, 2, Checkpoint({"anew": True}, {}))
    assert latest(tmp_path).facts == {"anew": True}


def test_where_no_checkpoint_is_whole_the_line_says_what_to_do(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"step-{step:05d}.safetensors").write_bytes(b"")
    assert refuse(tmp_path) == (
        f"{tmp_path}: no checkpoint is whole; delete them to begin again, which charges nothing twice"
    )


def test_what_is_looked_at_is_of_the_newest_checkpoint_that_has_a_header(tmp_path: Path) -> None:
    assert latest_facts(tmp_path) is None
    save_checkpoint(tmp_path, 1, Checkpoint({"step": 1}, {}))
    save_checkpoint(tmp_path, 2, Checkpoint({"step": 2}, {}))
    (tmp_path / "step-00002.safetensors").write_bytes(b"half")
    found = latest_facts(tmp_path)
    assert found is not None
    assert found["step"] == 1
    (tmp_path / "step-00001.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        latest_facts(tmp_path)


@pytest.mark.parametrize("body", [b"not a checkpoint", b"\x80\x05K\x01.", b"\xff" * 100, b"{}", b"\0" * 16])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "step-00001.safetensors").write_bytes(body)
    assert NONE in refuse(tmp_path)


@pytest.mark.parametrize("metadata", [None, {}, {"other": "{}"}, {"privshare": "{"}, {"privshare": ""}])
def test_a_file_without_our_header_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    (tmp_path / "step-00001.safetensors").write_bytes(save({"counts": np.ones(3)}, metadata=metadata))
    assert NONE in refuse(tmp_path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    body = save({"counts": np.ones(3)}, metadata={"privshare": json.dumps({"schema": "privshare.checkpoint/2"})})
    save_checkpoint(tmp_path, 1, Checkpoint({}, {}))  # which is not what whoever wrote the other one wants
    (tmp_path / "step-00002.safetensors").write_bytes(body)
    assert CHECKPOINT_SCHEMA in refuse(tmp_path)


@pytest.mark.parametrize(
    "header", [{}, {"schema": CHECKPOINT_SCHEMA}, {"schema": None}, {"run": "r"}, [], ["schema"], None, "schema", 1]
)
def test_a_header_without_a_version_or_a_digest_is_refused(tmp_path: Path, header: Any) -> None:
    body = save({"counts": np.ones(3)}, metadata={"privshare": json.dumps(header)})
    (tmp_path / "step-00001.safetensors").write_bytes(body)
    assert NONE in refuse(tmp_path)


def test_a_flipped_bit_in_an_array_or_a_changed_fact_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, Checkpoint({"seed": 1}, {"counts": np.ones(3)}))
    path = tmp_path / "step-00001.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:], whole.replace(b'seed\\": 1', b'seed\\": 2')):
        assert damaged != whole
        path.write_bytes(damaged)
        assert NONE in refuse(tmp_path)


def test_none_of_200_flipped_bits_goes_unseen(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, Checkpoint(FACTS, ARRAYS))
    path = tmp_path / "step-00001.safetensors"
    whole = path.read_bytes()
    for position in np.random.default_rng(5).choice(8 * len(whole), size=200, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        refuse(tmp_path)
    path.write_bytes(whole)
    assert latest(tmp_path).facts == FACTS


@pytest.mark.parametrize("start", [0, 8, 200, -24])
def test_a_part_of_nothing_but_zeros_is_refused(tmp_path: Path, start: int) -> None:
    save_checkpoint(tmp_path, 1, Checkpoint(FACTS, ARRAYS))
    path = tmp_path / "step-00001.safetensors"
    whole = path.read_bytes()
    at = start % len(whole)
    damaged = (whole[:at] + bytes(24) + whole[at + 24 :])[: len(whole)]
    assert damaged != whole
    path.write_bytes(damaged)
    refuse(tmp_path)


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, Checkpoint({}, {}))
    (tmp_path / "step-00002.safetensors").mkdir()
    assert refuse(tmp_path) == f"{tmp_path / 'step-00002.safetensors'}: cannot be read"


def test_it_is_safetensors_with_a_json_header_and_no_pickle(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, Checkpoint(FACTS, ARRAYS))
    body = (tmp_path / "step-00001.safetensors").read_bytes()
    length = int.from_bytes(body[:8], "little")
    header = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["privshare"])
    digest = header.pop("digest")
    assert len(bytes.fromhex(digest)) == 32
    assert header == {"schema": CHECKPOINT_SCHEMA, **FACTS}
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(tmp_path, 2, Checkpoint({"loss": float("nan")}, {}))


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "file.json"
    write_file(path, b"old")
    save_checkpoint(tmp_path, 1, Checkpoint({"step": 1}, {}))

    def crash(*args: Any) -> None:
        raise CrashError

    with monkeypatch.context() as broken:
        broken.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), crash)
        with pytest.raises(CrashError):
            write_file(path, b"new")
        with pytest.raises(CrashError):
            save_checkpoint(tmp_path, 2, Checkpoint({"step": 2}, {}))
    assert path.read_bytes() == b"old"
    assert latest(tmp_path).facts == {"step": 1}
    # What the crash left behind is in nobody's way.
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    synced, replaced = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (steps.append("on disk"), synced(file))[1])
    monkeypatch.setattr(Path, "replace", lambda path, target: (steps.append("named"), replaced(path, target))[1])
    write_file(tmp_path / "deep" / "er" / "file", b"body")
    # The folder above, two new folders, the file, its name.
    assert steps == [*["on disk"] * 4, "named", "on disk"]
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["file"]


def test_a_full_disk_ends_in_one_line_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"file: cannot be written \(No space left on device\)$") as refused:
        write_file(path, b"new")
    assert refused.value.code == ExitCode.OUTPUT_NOT_WRITABLE
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (
        lambda: write_file(tmp_path / "file" / "deeper", b""),
        lambda: save_checkpoint(tmp_path / "file", 1, Checkpoint({}, {})),
        lambda: write_json(tmp_path / "file" / "deeper.json", {}),
    ):
        with pytest.raises(OutputError, match="cannot be written") as refused:
            write()
        assert "\n" not in str(refused.value)


def test_json_has_no_nan_and_nothing_is_written_instead(tmp_path: Path) -> None:
    write_json(tmp_path / "good.json", {"one": 1.5, "none": None})
    assert json.loads((tmp_path / "good.json").read_text(encoding="utf-8")) == {"one": 1.5, "none": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "bad.json", {"one": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["good.json"]
