"""Consent: what it is shown for, what voids it, and how it ends while a site runs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.cli import app
from client.consent import read_withdrawal, withdrawal_path
from client.door import Door
from client.holding import alone
from client.policy import policy_digest
from common.errors import ExitCode, PolicyError, PrivShareError
from common.wire.envelopes import Order
from common.wire.messages import KINDS, Reply
from tests.client.homes import COORDINATOR, IDENTITY, Home, make_home, refused


def run(home: Home, *arguments: str, answer: str = "") -> Result:
    options = ["--site", "north", "--sites", str(home.folder.parent)]
    return CliRunner().invoke(app, [*options, *arguments], input=answer, env={"COLUMNS": "200"})


def fails(result: Result, code: ExitCode) -> str:
    assert result.exit_code == code, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def ordered(home: Home, door: Door, kind: str, name: str) -> bytes:
    """What a running site answers to an order of the coordinator."""
    body = home.ask(kind, name=name).encode()
    order = Order.of(body, study=home.study.digest(), site="north").seal(body, COORDINATOR)
    answer = door.answer(order)
    return answer[answer.index(b'\0{"__metadata__"') - 7 :]


def test_a_running_site_refuses_whatever_comes_after_a_withdrawal_and_spends_nothing(home: Home) -> None:
    site = home.open()
    door = Door(site)
    assert Reply.decode(ordered(home, door, "one_way", "first")).refused is None
    before = (home.ledger.read_bytes(), home.state)
    result = run(home, "withdraw", answer="north\n")
    assert result.exit_code == 0, result.output
    assert "cannot be taken back" in result.stdout
    assert "covered by the guarantee" in result.stdout
    assert refused(ordered(home, door, "one_way", "second")) == "CONSENT_WITHDRAWN"
    # Not even the answer that it gave before, and no other kind either.
    for kind in KINDS:
        assert refused(site.handle(home.ask(kind, name="first").encode())) == "CONSENT_WITHDRAWN"
    assert (home.ledger.read_bytes(), home.state) == before


def test_a_site_does_not_start_after_a_withdrawal_not_even_without_its_record(home: Home) -> None:
    run(home, "withdraw", "--yes")
    with pytest.raises(PolicyError, match="withdrawn") as caught:
        home.open()
    assert caught.value.code == ExitCode.CONSENT_WITHDRAWN == 28
    withdrawal_path(home.folder / "policy.yaml").unlink()
    with pytest.raises(PolicyError, match="not signed"):
        home.open()


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}"])
def test_a_record_that_cannot_be_read_ends_consent_too(home: Home, content: bytes) -> None:
    site = home.open()
    withdrawal_path(home.folder / "policy.yaml").write_bytes(content)
    assert refused(site.handle(home.ask("one_way").encode())) == "CONSENT_WITHDRAWN"
    assert run(home, "approve", "--yes").exit_code == ExitCode.CONSENT_WITHDRAWN


def test_the_record_is_signed_and_says_what_was_consented_to(home: Home) -> None:
    digest = policy_digest(home.folder / "policy.yaml")
    run(home, "withdraw", "--yes")
    record = read_withdrawal(home.folder / "policy.yaml")
    assert record is not None
    assert record.is_by(IDENTITY.public)
    assert (record.site, record.study, record.policy) == ("north", home.study.digest(), digest)
    # A second one changes nothing.
    assert run(home, "withdraw", "--yes").exit_code == 0
    assert read_withdrawal(home.folder / "policy.yaml") == record


def test_another_name_withdraws_nothing(home: Home) -> None:
    for typed in ("y\n", "south\n"):
        assert run(home, "withdraw", answer=typed).exit_code == 1
    assert home.open()


def test_consent_after_a_withdrawal_is_a_new_one_and_said_to_be(home: Home) -> None:
    run(home, "withdraw", "--yes")
    assert "--after-withdrawal" in fails(run(home, "approve", "--yes"), ExitCode.CONSENT_WITHDRAWN)
    with pytest.raises(PolicyError):
        home.open()
    result = run(home, "approve", "--yes", "--after-withdrawal")
    assert result.exit_code == 0, result.output
    assert "consent was withdrawn on" in result.stdout
    assert Reply.decode(home.open().handle(home.ask("one_way").encode())).refused is None
    # What was withdrawn once stays on record.
    assert len(list(home.folder.glob("policy.yaml.withdrawn-before-*"))) == 1


@pytest.mark.parametrize("name", ["policy.yaml", "study.yaml"])
def test_a_policy_or_a_study_that_was_changed_by_one_byte_voids_consent(home: Home, name: str) -> None:
    path = home.folder / name
    path.write_bytes(path.read_bytes().replace(b"name: toy", b"name: toi").replace(b"asset: ward", b"asset: word"))
    with pytest.raises(PrivShareError) as caught:
        home.open()
    assert caught.value.code == ExitCode.POLICY_REFUSED


def test_status_reads_the_files_of_a_site_that_nobody_can_ask(home: Home) -> None:
    home.open().handle(home.ask("one_way").encode())
    result = run(home, "status", "--json")
    assert result.exit_code == ExitCode.UNREACHABLE
    found = json.loads(result.stdout)
    assert (found["running"], found["consent"], found["replies"]) == (False, "given", 1)
    assert 0 < found["spent"] < 1
    run(home, "withdraw", "--yes")
    assert json.loads(run(home, "status", "--json").stdout)["consent"].startswith("withdrawn on ")


def test_status_says_whether_a_process_holds_the_site(home: Home) -> None:
    with alone(home.folder / "state"):
        result = run(home, "status", "--json")
        assert (result.exit_code, json.loads(result.stdout)["running"]) == (0, True)
    assert json.loads(run(home, "status", "--json").stdout)["running"] is False


def test_what_is_left_after_a_study_counts_what_others_have_spent(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north", max_epsilon=1, max_delta=1e-5, total_epsilon=2, total_delta=1e-5)
    said = run(home, "approve", "--yes").stdout
    (line,) = [line for line in said.splitlines() if "left after this study" in line]
    left = float(line.split("│")[2].split("%")[0])
    assert 60 < left < 80  # twice the epsilon is about four times the budget
