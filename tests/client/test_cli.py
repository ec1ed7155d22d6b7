"""`privshare-client` as a data steward types it: what it shows, what it signs, what it finds wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from client.cli import app
from common.errors import ExitCode
from common.privacy.ledger import read_ledger
from common.privacy.signatures import is_signed
from tests.client.homes import IDENTITY, PEERS, Home, confirm, make_home, write_policy


def run(home: Home, *arguments: str, answer: str = "") -> Result:
    options = ["--site", "north", "--sites", str(home.folder.parent)]
    return CliRunner().invoke(app, [*options, *arguments], input=answer, env={"COLUMNS": "200"})


def fails(result: Result, code: ExitCode) -> str:
    """The one line that a refused command ends with."""
    assert result.exit_code == code, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def spent(home: Home) -> Home:
    """A site that released twice."""
    site = home.open()
    for kind in ("one_way", "monitor"):
        confirm(home, site)
        site.handle(home.ask(kind).encode())
    assert home.charged == ["run-1/one_way", "run-1/monitor"]
    return home


def test_show_lists_what_was_paid_for_and_what_is_left(spent: Home) -> None:
    text = run(spent, "ledger", "show").stdout
    for part in ("run-1/one_way", "run-1/monitor", "train", "holdout", "25.00% of its budget"):
        assert part in text
    book = read_ledger(spent.ledger)
    for study, charges in book.charges.items():
        for charge in charges.values():
            (line,) = [line for line in text.splitlines() if charge.request in line]
            assert f" {book.spend_of(charge.event) / book.bounds[study]:.1%} " in line


def test_show_as_json_agrees_with_the_ledger(spent: Home) -> None:
    found = json.loads(run(spent, "ledger", "show", "--json").stdout)
    book = read_ledger(spent.ledger)
    (study,) = found["studies"].values()
    assert [charge["request"] for charge in study["charges"]] == spent.charged
    assert all(charge["sealed"] for charge in study["charges"])
    assert sum(charge["spend"] for charge in study["charges"]) == pytest.approx(sum(study["spent"].values()))
    assert found["head"]["hash"] == book.head.hash
    assert found["site"] == "north"


def test_verify_counts_what_is_whole(spent: Home) -> None:
    result = run(spent, "ledger", "verify")
    assert result.exit_code == 0
    assert "whole: 6 entries, 2 charges, 2 sealed replies" in result.stdout


def test_verify_finds_a_changed_ledger_a_lost_reply_and_another_key(spent: Home) -> None:
    whole = spent.ledger.read_bytes()
    spent.ledger.write_bytes(whole.replace(b'"cells"', b'"cellz"', 1))
    assert "ledger.jsonl:" in fails(run(spent, "ledger", "verify"), ExitCode.LEDGER_INVALID)
    spent.ledger.write_bytes(whole)
    reply = next((spent.folder / "state" / "replies").iterdir())
    body = reply.read_bytes()
    for damage in (lambda: reply.write_bytes(body[:-1] + bytes([body[-1] ^ 1])), reply.unlink):
        damage()
        assert "1 sealed replies" in fails(run(spent, "ledger", "verify"), ExitCode.LEDGER_INVALID)
    (spent.folder / "state" / "identity.pem").unlink()
    fails(run(spent, "ledger", "verify"), ExitCode.POLICY_REFUSED)
    run(spent, "approve", "--yes")  # makes another key
    assert "another key" in fails(run(spent, "ledger", "verify"), ExitCode.LEDGER_INVALID)


def test_a_ledger_command_changes_nothing(spent: Home) -> None:
    before = (spent.ledger.read_bytes(), spent.state)
    for verb in ("show", "verify"):
        assert run(spent, "ledger", verb).exit_code == 0
    assert (spent.ledger.read_bytes(), spent.state) == before


def test_a_site_that_never_spent_has_no_ledger_to_show(tmp_path: Path) -> None:
    assert "cannot be read" in fails(run(make_home(tmp_path / "north"), "ledger", "show"), ExitCode.LEDGER_INVALID)


def test_approve_shows_the_terms_and_signs_once_the_sites_name_is_typed(home: Home) -> None:
    write_policy(home, expires="2031-01-01", peers={name: key.public for name, key in PEERS.items()})
    signature, policy = home.folder / "policy.yaml.sig", home.folder / "policy.yaml"
    signature.unlink()
    for typed in ("y\n", "south\n", "North\n"):
        assert run(home, "approve", answer=typed).exit_code == 1
    assert not signature.exists()
    result = run(home, "approve", answer="north\n")
    assert result.exit_code == 0
    for part in (
        home.study.digest(),
        "each patient",
        "2031-01-01",
        "east, west",
        "epsilon",
        "read by the coordinator",
        "of the budget of all",
    ):
        assert part in result.stdout
    signed = signature.read_text(encoding="ascii").strip()
    assert is_signed(policy.read_bytes(), signed, purpose="policy", public=IDENTITY.public)
    assert home.open()


def test_the_first_approval_makes_the_sites_key(home: Home) -> None:
    key = home.folder / "state" / "identity.pem"
    key.unlink()
    assert run(home, "approve", "--yes").exit_code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert home.open()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"approved": "0" * 64}, ExitCode.POLICY_REFUSED),
        ({"site": "south"}, ExitCode.POLICY_REFUSED),
        ({"columns": ["age"]}, ExitCode.POLICY_REFUSED),
        ({"max_epsilon": 0}, ExitCode.STUDY_INVALID),
        ({"max_epsilonn": 1}, ExitCode.STUDY_INVALID),
    ],
)
def test_a_policy_that_does_not_fit_is_not_signed(home: Home, change: dict[str, Any], code: ExitCode) -> None:
    write_policy(home, **change)
    (home.folder / "policy.yaml.sig").unlink()
    fails(run(home, "approve", "--yes"), code)
    assert not (home.folder / "policy.yaml.sig").exists()


def test_a_site_that_is_not_there_or_another_ones_file_is_refused(home: Home) -> None:
    result = CliRunner().invoke(app, ["--site", "south", "--sites", str(home.folder.parent), "ledger", "show"])
    assert "no such site file" in fails(result, ExitCode.STUDY_NOT_FOUND)
    home.folder.rename(home.folder.with_name("south"))
    result = CliRunner().invoke(app, ["--site", "south", "--sites", str(home.folder.parent), "ledger", "show"])
    assert "another site" in fails(result, ExitCode.POLICY_REFUSED)
