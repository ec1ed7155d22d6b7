"""Whole runs with masks: the same table, and a coordinator that sees sums alone."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from client.site import Site
from common.certificate import NOT_COVERED
from common.errors import ExitCode, LedgerError, ProtocolError, TooFewSitesError
from common.privacy.events import GaussianEvent
from common.privacy.recount import check_certificate, recount
from common.privacy.signatures import SigningKey
from common.wire.envelopes import claimed_site
from common.wire.messages import Reply, Request, refusal
from common.wire.secure_sum import MaskAnnouncement, MaskKey, Participants, masked
from server.aggregation import add_up
from server.app import GridExchange
from tests.simulations.test_federation import (
    RELEASES,
    STUDY,
    interrupt,
    invoke,
    read_charges,
    read_json,
    resume,
    rounds_of,
)

# Without embeddings, whose features follow from the study's digest.
PLAIN = STUDY.replace("semantic: 0.5, ", "semantic: 0, ")
MASKED = PLAIN.replace("holdout: 0.2", "holdout: 0.2, noise_trust: masked")
OPTIONS = ("--sites", "3", "--test-noise-seed", "5")
NAMES = [name for name in RELEASES if not name.startswith("embedding")]
ALIKE = ("synthetic.csv", "generator/generator.safetensors", "rounds.jsonl")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    with threadpool_limits(1):
        yield


class Run:
    """A finished run, and every reply of every site."""

    def __init__(self, folder: Path, study: str) -> None:
        """Run it."""
        self.folder = folder
        self.said: list[tuple[str, Request, Reply]] = []
        handle = Site.handle

        def recorded(site: Site, body: bytes) -> bytes:
            answer = handle(site, body)
            self.said.append((site.name, Request.decode(body), Reply.decode(answer)))
            return answer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Site, "handle", recorded)
            result = invoke(folder, *OPTIONS, study=study)
        assert result.exit_code == 0, result.stderr

    def arrays(self, name: str) -> list[dict[str, np.ndarray]]:
        """What sites sent in answer to a request."""
        return [dict(reply.arrays) for _, request, reply in self.said if request.name == name]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("plain") / "run", PLAIN)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("hidden") / "run", MASKED)


# --- what comes of it


def test_the_table_is_the_same_to_the_byte_with_masks_and_without(plain: Run, hidden: Run) -> None:
    for name in ALIKE:
        assert (hidden.folder / name).read_bytes() == (plain.folder / name).read_bytes(), name
    assert rounds_of(hidden.folder)[1]["trainers"]


def test_the_coordinator_gets_nothing_but_sums(plain: Run, hidden: Run) -> None:
    for name in NAMES:
        open_, masks = plain.arrays(name), hidden.arrays(name)
        assert [set(one) for one in masks] == [{"masked"}] * 3
        assert [set(one) for one in open_] == [{"counts"}] * 3
        total = np.sum([one["masked"] for one in masks], axis=0, dtype=np.uint64)
        assert (total.view(np.int64) == np.sum([one["counts"] for one in open_], axis=0)).all()
        for one in masks:
            assert all((one["masked"].view(np.int64) != other["counts"]).all() for other in open_)
    # And of nothing but training anything else.
    others = {request.kind for _, request, reply in hidden.said if set(reply.arrays) - {"masked"}}
    assert others == {"train"}


def test_a_run_that_is_over_leaves_no_key_for_masks(hidden: Run) -> None:
    paths = sorted(hidden.folder.glob("sites/*/masks.json"))
    assert len(paths) == 3
    assert [json.loads(path.read_text())["key"] for path in paths] == [None] * 3


def test_both_runs_spend_alike(plain: Run, hidden: Run) -> None:
    for path in sorted((plain.folder / "ledger").glob("*.jsonl")):
        events = [
            [charge.event for charge in read_charges(run.folder / "ledger" / path.name)] for run in (plain, hidden)
        ]
        assert events[0] == events[1]
        assert len(events[0]) == len(NAMES)


def test_the_certificate_says_what_masks_hide_and_claims_nothing_for_them(plain: Run, hidden: Run) -> None:
    before, after = (read_json(run.folder / "certificate.json") for run in (plain, hidden))
    assert (before["noise_trust"], after["noise_trust"]) == ("local", "local, sums masked")
    assert before["not_covered"] == list(NOT_COVERED)
    assert after["not_covered"][: len(NOT_COVERED)] == list(NOT_COVERED)
    assert "X25519" in " ".join(after["not_covered"])
    assert recount(after) == recount(before)
    check_certificate(after)
    # Shares of noise would be another claim.
    for trust in ("shares", "", None, ["local"]):
        with pytest.raises(LedgerError, match="noise_trust"):
            check_certificate({**after, "noise_trust": trust})


# --- what goes wrong on the way


def test_a_site_that_restarts_in_the_middle_changes_nothing(
    tmp_path: Path, hidden: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Site.handle
    refused: list[str | None] = []

    def restarting(site: Site, body: bytes) -> bytes:
        # The last of three to be asked: the others have sealed their answers.
        if Request.decode(body).name == "pairs-2" and site.name == "site_03" and not refused:
            site.__init__(site._settings, noise=site._noise, device=site._device)  # type: ignore[misc]
            refused.append(Reply.decode(handle(site, body)).refused)
        return handle(site, body)

    monkeypatch.setattr(Site, "handle", restarting)
    assert invoke(tmp_path / "run", *OPTIONS, study=MASKED).exit_code == 0
    assert refused == ["UNCONFIRMED"]
    for name in ALIKE:
        assert (tmp_path / "run" / name).read_bytes() == (hidden.folder / name).read_bytes(), name


@pytest.mark.parametrize("is_written", [True, False])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path, hidden: Run, *, is_written: bool) -> None:
    interrupt(tmp_path / "run", "pairs-2", 0, is_written=is_written, options=OPTIONS, study=MASKED)
    result = resume(tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    for name in ALIKE:
        assert (tmp_path / "run" / name).read_bytes() == (hidden.folder / name).read_bytes(), name


def test_a_site_that_was_not_told_who_masks_is_told_again(
    tmp_path: Path, hidden: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Site.handle
    refused: list[str | None] = []

    def forgetful(site: Site, body: bytes) -> bytes:
        if Request.decode(body).name == "pairs-2" and site.name == "site_02" and not refused:
            site._masks._slot = replace(site._masks._slot, participants=None)  # type: ignore[type-var]
            refused.append(Reply.decode(handle(site, body)).refused)
            return refusal(site.name, ExitCode.UNMASKED)
        return handle(site, body)

    monkeypatch.setattr(Site, "handle", forgetful)
    assert invoke(tmp_path / "run", *OPTIONS, study=MASKED).exit_code == 0
    assert refused == ["UNMASKED"]
    for name in ALIKE:
        assert (tmp_path / "run" / name).read_bytes() == (hidden.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("way", "code", "charged"),
    [("its answer is lost", ExitCode.NO_ANSWER, [2, 2, 2]), ("it refuses", ExitCode.INTERNAL, [2, 1, 2])],
)
def test_a_site_that_is_missing_ends_the_run_by_name_and_the_run_goes_on_once_it_is_back(
    tmp_path: Path, hidden: Run, way: str, code: ExitCode, charged: list[int]
) -> None:
    ask, handle = GridExchange.ask, Site.handle
    asked: list[str] = []

    def carried(exchange: GridExchange, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        asked.clear()
        answers = ask(exchange, bodies)
        if "pairs-1" not in asked or way == "it refuses":
            return answers
        return {address: body for address, body in answers.items() if claimed_site(body) != "site_02"}

    def handled(site: Site, body: bytes) -> bytes:
        asked.append(Request.decode(body).name)
        if way == "it refuses" and asked[-1] == "pairs-1" and site.name == "site_02":
            return refusal(site.name, ExitCode.INTERNAL)
        return handle(site, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "handle", handled)
        patch.setattr(GridExchange, "ask", carried)
        result = invoke(tmp_path / "run", *OPTIONS, study=MASKED)
    assert result.exit_code == code, result.stderr
    assert "site site_02: " in result.stderr.splitlines()[-1]
    assert [len(read_charges(path)) for path in sorted((tmp_path / "run" / "ledger").glob("*.jsonl"))] == charged
    assert resume(tmp_path / "run").exit_code == 0
    for name in ALIKE:
        assert (tmp_path / "run" / name).read_bytes() == (hidden.folder / name).read_bytes(), name


def test_a_site_that_lost_its_key_ends_the_run_by_name(tmp_path: Path) -> None:
    interrupt(tmp_path / "run", "pairs-1", 0, is_written=False, options=OPTIONS, study=MASKED)
    (tmp_path / "run" / "sites" / "site_02" / "masks.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "ledger").glob("*.jsonl")}
    result = resume(tmp_path / "run")
    assert result.exit_code == ExitCode.PROTOCOL
    line = result.stderr.splitlines()[-1]
    assert "site site_02: has another key for masks than when the run began" in line
    assert "start a new run" in line
    assert {path: path.read_bytes() for path in before} == before


def test_a_site_that_loses_its_key_while_it_restarts_ends_the_run_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Site.handle
    lost: list[str] = []

    def losing(site: Site, body: bytes) -> bytes:
        if Request.decode(body).name == "pairs-1" and site.name == "site_03" and not lost:
            (site._settings.state / "masks.json").unlink()
            lost.append(site.name)
            site.__init__(site._settings, noise=site._noise, device=site._device)  # type: ignore[misc]
        return handle(site, body)

    monkeypatch.setattr(Site, "handle", losing)
    result = invoke(tmp_path / "run", *OPTIONS, study=MASKED)
    assert result.exit_code == ExitCode.PROTOCOL
    assert "site site_03: has another key for masks" in result.stderr.splitlines()[-1]


def test_a_site_alone_has_nobody_to_mask_with(tmp_path: Path) -> None:
    result = invoke(tmp_path / "run", "--sites", "1", "--test-noise-seed", "5", study=MASKED)
    assert result.exit_code == ExitCode.POLICY_REFUSED
    assert "masks need another site" in result.stderr.splitlines()[-1]


# --- adding up

CELLS = 4
EVENT = GaussianEvent(
    account="train", squared_sensitivity=4, noise_stddev=3.0, cells=CELLS, scale=2, noise="csprng", sampling=1.0
)
IDENTITIES = {name: SigningKey.from_seed(name.encode().ljust(32, b".")) for name in ("east", "north", "west")}
KEYS = {name: MaskKey.generate() for name in IDENTITIES}


def announced(run: str) -> Participants:
    said: list[MaskAnnouncement] = [
        key.announce(name, study="1f", run=run, identity=IDENTITIES[name]) for name, key in KEYS.items()
    ]
    peers = {name: identity.public for name, identity in IDENTITIES.items()}
    return Participants.verified(said, own=said[0], peers=peers)


MASKS = announced("run")


def replies(**changes: Any) -> dict[str, Reply]:
    """Of all three, of which each counted 1, -2, 3, 4; the changes are of what north says."""
    found = {}
    for name, key in KEYS.items():
        vector = np.array([1, -2, 3, 4])
        sent = masked(vector, key, MASKS, request_identity="run/one_way", request_digest="2e")
        facts: dict[str, Any] = {"event": EVENT.as_dict(), "participants": MASKS.digest}
        arrays = {"masked": sent}
        if name == "north":
            facts |= changes.get("facts", {})
            arrays = changes.get("arrays", lambda one: one)(arrays)
        found[name] = Reply(name, facts, arrays)
    return found


def test_what_all_masked_is_added_up_like_what_came_in_the_open() -> None:
    release = add_up(replies(), cells=CELLS, masks=MASKS)
    assert release.counts.tolist() == [1.5, -3, 4.5, 6]
    assert release.variance == pytest.approx(3 * (9 + 1 / 12) / 4)
    assert dict(release.events) == dict.fromkeys(KEYS, EVENT)


Arrays = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
WRONG: dict[str, Arrays] = {
    "in the open": lambda sent: {"counts": sent["masked"].view(np.int64)},
    "in the open too": lambda sent: {**sent, "counts": np.zeros(CELLS, dtype=np.int64)},
    "signed": lambda sent: {"masked": sent["masked"].view(np.int64)},
    "too short": lambda sent: {"masked": sent["masked"][1:]},
    "nothing": lambda _: {},
    "not its own mask": lambda sent: {"masked": sent["masked"] + np.uint64(2**60)},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_masked_as_agreed_is_not_added_up(what: str) -> None:
    with pytest.raises(ProtocolError, match=r"north|masks do not cancel"):
        add_up(replies(arrays=WRONG[what]), cells=CELLS, masks=MASKS)


@pytest.mark.parametrize(
    "digest", [announced("another run").digest, "", None, 7], ids=["run", "empty", "none", "number"]
)
def test_a_site_that_masked_with_others_is_named(digest: object) -> None:
    with pytest.raises(ProtocolError, match="site north: masked for other participants"):
        add_up(replies(facts={"participants": digest}), cells=CELLS, masks=MASKS)


def test_sums_are_not_made_without_a_site() -> None:
    some = replies()
    del some["west"]
    with pytest.raises(TooFewSitesError, match="site west: is missing"):
        add_up(some, cells=CELLS, masks=MASKS)


def test_a_masked_vector_is_no_count() -> None:
    with pytest.raises(ProtocolError, match="site east"):
        add_up(replies(), cells=CELLS)
