"""The list of mutants is whole, and the fast ones of them are run; `make mutants` runs all."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from tests.mutants.mutants import CONTROLS, MUTANTS, Mutant, Patch
from tests.mutants.run import FAST_LIBRARIES, ROOT, Copy, killers, patched, try_out
from tests.mutants.zygote import ELSEWHERE

PATCHES = (*MUTANTS, *CONTROLS)
FAST = [mutant for mutant in MUTANTS if mutant.is_fast]
FAST_CONTROLS = [control for control in CONTROLS if control.is_fast]


def test_every_mutant_has_a_name_of_its_own_a_twin_and_a_test_that_sees_it() -> None:
    assert len({patch.name for patch in PATCHES}) == len(PATCHES)
    assert all(patch.twin for patch in PATCHES)
    assert all(mutant.killed_by for mutant in MUTANTS)
    assert len(MUTANTS) >= 80
    assert len(CONTROLS) >= 5


@pytest.mark.parametrize("patch", PATCHES, ids=[patch.name for patch in PATCHES])
def test_what_a_patch_replaces_is_in_its_file_once_and_the_result_is_python(patch: Patch) -> None:
    text = patched((ROOT / patch.file).read_text(encoding="utf-8"), patch)
    compile(text, patch.file, "exec")


def test_a_patch_that_replaces_nothing_or_two_things_is_refused() -> None:
    patch = MUTANTS[0]
    for text in ("", f"{patch.old}\n{patch.old}"):
        with pytest.raises(ValueError, match=patch.name):
            patched(text, patch)


def test_every_test_that_is_named_is_there() -> None:
    asked = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *killers(MUTANTS)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """A copy of the tree in which the fast mutants' tests pass."""
    with closing(Copy(tmp_path_factory.mktemp("copy"), FAST_LIBRARIES)) as made:
        whole = made.test(killers(FAST), is_broken=False)
        assert whole.status == 0, whole.printed
        yield made


@pytest.mark.parametrize("mutant", FAST, ids=[mutant.name for mutant in FAST])
def test_a_fast_mutant_is_killed(copy: Copy, mutant: Mutant) -> None:
    outcome = try_out(copy, mutant, mutant.killed_by)
    assert outcome.verdict == "killed", outcome.by
    # The copy is whole again.
    assert (copy.folder / mutant.file).read_bytes() == (ROOT / mutant.file).read_bytes()


@pytest.mark.parametrize("control", FAST_CONTROLS, ids=[control.name for control in FAST_CONTROLS])
def test_a_fast_control_is_not_flagged(copy: Copy, control: Patch) -> None:
    outcome = try_out(copy, control, killers(FAST))
    assert (outcome.verdict, outcome.by) == ("passed", "")


def test_a_mutant_that_no_test_sees_survives_and_one_that_is_no_code_is_invalid(copy: Copy) -> None:
    (mutant,) = (one for one in MUTANTS if one.name == "key-of-32-bits")
    (control,) = (one for one in CONTROLS if one.old == mutant.old)
    for new, verdict in ((control.new, "SURVIVED"), ("return 1 +", "INVALID"), (mutant.new, "killed")):
        assert try_out(copy, replace(mutant, new=new), mutant.killed_by).verdict == verdict
    gone = mutant.killed_by[0].replace("draw", "drew")
    assert try_out(copy, mutant, [gone]).verdict == "INVALID"
    flagged = try_out(copy, replace(control, new=mutant.new), mutant.killed_by)
    assert (flagged.verdict, flagged.by) == ("FLAGGED", mutant.killed_by[0])


def test_a_run_that_imports_a_package_from_elsewhere_is_invalid(copy: Copy) -> None:
    (mutant,) = (one for one in FAST if one.name == "budget-looked-at-before-the-spend")
    # Then the packages are found as they are installed, in the tree itself.
    (copy.folder / "common").rename(copy.folder / "gone")
    try:
        assert copy.test(mutant.killed_by).status == ELSEWHERE
    finally:
        (copy.folder / "gone").rename(copy.folder / "common")
    assert copy.test(mutant.killed_by).status == 0
