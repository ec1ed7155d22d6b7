"""What is checked of a release, and that nothing of it can be changed unseen."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common import verification
from common.errors import ExitCode, ReleaseFileError
from common.synthesis import card as card_module
from common.synthesis import release as release_module
from common.synthesis.cli import app
from common.synthesis.synthesizer import Synthesizer
from common.verification import Verification, verify_release
from tests.common.synthesis.releases import make_release as make_unpublished
from tests.tamperings import (
    ATTACKER,
    PLAIN,
    SITES,
    TAMPERINGS,
    all_by_attacker,
    cheaper,
    copy,
    make_release,
    read,
    site_key,
)

CHECKS = (
    *("certificate", "signature", "files", "study", "generator", "spending", "ledgers", "epsilon", "guarantee"),
    "gates",
)


def failed(found: Verification) -> list[str]:
    return [one.check for one in found.findings if not one.passed]


def key_of(release: Path) -> str:
    return str(read(release)["signature"]["key"])


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["published", "sampled"])
def test_a_release_as_it_was_made_is_valid(name: str, request: pytest.FixtureRequest) -> None:
    release = request.getfixturevalue(name)
    found = verify_release(release)
    assert [(one.check, one.passed) for one in found.findings] == [(check, True) for check in CHECKS]
    certificate = read(release)
    assert found.is_valid
    assert found.statement == certificate["guarantee"]["statement"]
    assert list(found.not_covered) == certificate["not_covered"]
    assert [key.owner for key in found.keys] == ["simulation", *SITES]
    assert not any(key.pinned for key in found.keys)


@pytest.mark.parametrize("how", TAMPERINGS)
def test_what_was_tampered_with_is_refused_by_the_right_check(published: Path, tmp_path: Path, how: str) -> None:
    tampering = TAMPERINGS[how]
    keys = [key_of(published)] if tampering.is_pinned else []
    sites = {name: site_key(name).public for name in SITES} if tampering.sites_are_pinned else {}
    folder = copy(published, tmp_path / "release")
    assert verify_release(folder, keys=keys, site_keys=sites).is_valid
    tampering.do(folder)
    found = verify_release(folder, keys=keys, site_keys=sites)
    assert tampering.check in failed(found), found
    assert (found.statement, found.not_covered) == (None, ())
    assert all(one.reason.isprintable() for one in found.findings)


def test_pinned_keys_are_told_from_those_that_the_certificate_names(published: Path) -> None:
    keys = {"0" * 64, key_of(published)}
    found = verify_release(published, keys=keys, site_keys={SITES[1]: site_key(SITES[1]).public})
    assert found.is_valid
    assert [(key.owner, key.pinned) for key in found.keys] == [
        ("simulation", True),
        (SITES[0], False),
        (SITES[1], True),
        (SITES[2], False),
    ]


@pytest.mark.parametrize("given", [{"nowhere": "0" * 64}, {SITES[0]: "0" * 64}], ids=str)
def test_a_site_that_is_asked_for_must_be_there_with_its_key(published: Path, given: dict[str, str]) -> None:
    assert failed(verify_release(published, site_keys=given)) == ["spending"]


def test_a_release_that_was_made_up_is_valid_only_where_no_key_is_pinned(published: Path, tmp_path: Path) -> None:
    folder = copy(published, tmp_path / "release")
    all_by_attacker(cheaper)(folder)
    assert verify_release(folder).is_valid
    code, said = invoke(folder)
    assert code == 0
    assert f"key of coordinator: {ATTACKER.public} (NOT PINNED)" in said
    assert failed(verify_release(folder, keys=[key_of(published)])) == ["signature"]
    assert failed(verify_release(folder, site_keys={SITES[0]: site_key(SITES[0]).public})) == ["spending"]


def test_a_release_of_another_run_is_not_this_one(published: Path, sampled: Path, tmp_path: Path) -> None:
    for at, names in enumerate(
        [("certificate.json",), ("generator/generator.json", "generator/generator.safetensors")]
    ):
        folder = copy(published, tmp_path / str(at))
        for name in names:
            (folder / name).write_bytes((sampled / name).read_bytes())
        assert {"files", "study"} <= set(failed(verify_release(folder)))


def test_a_run_in_test_mode_guarantees_nothing(tmp_path: Path) -> None:
    found = verify_release(make_release(tmp_path, PLAIN, noise_seed=4))
    assert failed(found) == ["guarantee"]
    assert found.statement is None
    assert "void: the noise was drawn from a seed" in next(one.reason for one in found.findings if not one.passed)


def test_the_whole_folder_of_a_run_is_verified_like_what_belongs_to_the_release(published: Path) -> None:
    assert (published.parent / "run" / "checkpoints").is_dir()
    assert verify_release(published.parent / "run").is_valid


# the command


def test_the_command_prints_a_line_a_check_the_guarantee_the_keys_and_what_is_not_guaranteed(published: Path) -> None:
    code, said = invoke(published)
    lines = said.splitlines()
    assert code == 0
    assert [tuple(line.split()[:2]) for line in lines[: len(CHECKS)]] == [("OK", check) for check in CHECKS]
    certificate = read(published)
    at = lines.index("VALID")
    assert lines[at + 1] == certificate["guarantee"]["statement"]
    assert sum("(NOT PINNED)" in line for line in lines) == 4
    assert "whoever made it may have made them" in said
    assert "The sites were simulated" in said
    at = lines.index("Not guaranteed:")
    assert lines[at + 1 :] == [f"- {line}" for line in certificate["not_covered"]]


def test_the_command_takes_keys_as_they_are_or_from_files(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "coordinator.txt"
    path.write_text(f"{key_of(published).upper()}\n")
    sites = [word for name in SITES for word in ("--site-key", f"{name}={site_key(name).public}")]
    for key in (key_of(published), path):
        code, said = invoke(published, "--key", key, *sites)
        assert (code, "NOT PINNED" in said, said.count("(pinned)")) == (0, False, 4)
    code, said = invoke(published, "--key", ATTACKER.public)
    assert code == ExitCode.RELEASE_UNVERIFIED == 74
    assert "FAILED  signature" in said
    assert "INVALID: 1 of 10 checks failed, and nothing is guaranteed" in said


@pytest.mark.parametrize("given", ["", "ab", "0" * 63, "g" * 64, "/nowhere", "."])
@pytest.mark.parametrize("option", ["--key", "--site-key"])
def test_what_is_no_key_is_a_fault_of_the_caller(published: Path, option: str, given: str) -> None:
    code, said = invoke(published, option, given)
    assert code == ExitCode.USAGE
    assert said.count("\n") == 1
    assert "expected a public key of 64 digits" in said


def test_the_command_says_the_same_in_json(published: Path, tmp_path: Path) -> None:
    code, said = invoke(published, "--json")
    found = json.loads(said)
    assert (code, found["valid"], len(found["findings"])) == (0, True, len(CHECKS))
    code, said = invoke(tmp_path / "nowhere", "--json")
    found = json.loads(said)
    assert (code, found["valid"], found["statement"]) == (74, False, None)
    assert found["findings"] == [
        {
            "check": "certificate",
            "passed": False,
            "reason": "certificate.json: cannot be read (No such file or directory)",
        }
    ]


def test_it_needs_no_torch_and_less_than_five_seconds_of_a_processor(published: Path) -> None:
    program = (
        "import sys, time\n"
        "from simulations.cli import app\n"
        "try:\n    app(['verify', sys.argv[1]])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
        "print('seconds', time.process_time())\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, published], capture_output=True, text=True, check=True)
    assert "\nVALID\n" in done.stdout
    assert float(done.stdout.split()[-1]) < 5, time.monotonic() - began


# from Python


def test_a_synthesizer_verifies_the_folder_that_it_was_read_from(published: Path, tmp_path: Path) -> None:
    folder = copy(published, tmp_path / "release")
    synthesizer = Synthesizer.load(folder)
    assert synthesizer.verify() == verify_release(folder)
    assert synthesizer.verify(keys=[key_of(folder)]).keys[0].pinned
    TAMPERINGS["rows in another order"].do(folder)
    assert failed(synthesizer.verify()) == ["files"]


def test_a_synthesizer_without_a_folder_cannot_be_verified(published: Path) -> None:
    loaded = Synthesizer.load(published)
    with pytest.raises(ReleaseFileError, match="was not read from a folder"):
        Synthesizer(make_unpublished(), loaded.device).verify()


def test_the_names_of_the_files_are_those_that_a_release_is_written_under() -> None:
    named = (verification.FACTS, verification.WEIGHTS, verification._GENERATOR_SCHEMA)
    assert named == (release_module.FACTS, release_module.WEIGHTS, release_module.GENERATOR_SCHEMA)
    assert (verification.CARD, verification.CROISSANT) == (card_module.CARD, card_module.CROISSANT)
