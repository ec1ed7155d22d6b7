"""Witnesses: a ledger that went back, began anew or goes on twice is found out by one honest peer that saw it."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.witnesses import Witnesses
from common.errors import ExitCode, LedgerError, PolicyError, ProtocolError
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Asset, Charge, Head, Ledger
from common.privacy.signatures import SigningKey
from common.privacy.witness import MOST_WITNESSES, NOTHING, Attestation, Statement, state_head
from tests.faults.disk import Disk, Fault

PEERS = ("east", "south", "west")
KEYS = {name: SigningKey.from_seed(name.encode().ljust(32, b".")) for name in ("north", *PEERS, "stranger")}
EVENT = GaussianEvent(account="train", squared_sensitivity=1, noise_stddev=100.0, cells=4, scale=1, noise="test-seed")


class Machine:
    """What of a site spends and witnesses, in a folder of its own."""

    def __init__(self, folder: Path, site: str, *, peers: Iterable[str] = (), needed: int | None = None) -> None:
        self.folder, self.site = folder, site
        self.peers = {name: KEYS[name].public for name in peers}
        self.needed = needed
        self.asset = "ward"
        self.released = 0
        self.start()

    def start(self) -> None:
        """Begin, or begin again after a stop."""
        key = KEYS[self.site]
        asset = Asset(self.site, self.asset, "", GdpAccountant(), 1.0)
        self.ledger = Ledger(self.folder / "ledger.jsonl", asset=asset, study="0f" * 32, bound=1.0, key=key)
        self.witnesses = Witnesses(
            self.folder / "witness.json",
            site=self.site,
            key=key,
            ledger=self.ledger,
            peers=self.peers,
            needed=self.needed,
        )

    def release(self) -> Statement:
        """What a site does for a request; its statement goes out with the reply."""
        self.witnesses.require()
        name = f"{self.folder.name}/{self.ledger.head().sequence}"
        self.ledger.authorise(Charge(name, "ab" * 32, EVENT))
        stated = self.witnesses.statement()
        self.ledger.seal(name, "cd" * 32)
        self.released += 1
        return stated

    def clone(self, folder: Path, *, without: str = "") -> "Machine":
        """The same site on another machine, from a copy of this one's files as they are now."""
        shutil.copytree(self.folder, folder)
        if without:
            (folder / without).unlink()
        return Machine(folder, self.site, peers=self.peers, needed=self.needed)

    def backup(self) -> Callable[..., None]:
        """Keep the files as they are now; what comes back puts some or all of them in their place again."""
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}

        def restore(*names: str) -> None:
            for path in list(self.folder.iterdir()):
                if path.name in names or not names:
                    path.unlink()
            for name, body in files.items():
                if name in names or not names:
                    (self.folder / name).write_bytes(body)

        return restore

    @property
    def memory(self) -> dict[str, Any]:
        """What it keeps of others and itself, by site."""
        path = self.folder / "witness.json"
        return dict(json.loads(path.read_bytes())["seen"]) if path.exists() else {}


def attested(peer: Machine, site: Machine) -> list[Attestation]:
    """What a peer attests when a site asks."""
    return peer.witnesses.attest({site.site: site.witnesses.nonce})


def confirm(site: Machine, *peers: Machine) -> int:
    """What an honest coordinator does: the site's head to its peers, their word to the site."""
    stated = site.witnesses.statement()
    for peer in peers:
        peer.witnesses.note([stated])
    return site.witnesses.take([one for peer in peers for one in attested(peer, site)])


def is_unconfirmed(site: Machine) -> bool:
    """Whether a site refuses to spend because too few peers have confirmed it."""
    try:
        site.witnesses.require()
    except PolicyError as refused:
        return refused.code == ExitCode.UNCONFIRMED
    return False


def is_stopped(site: Machine) -> bool:
    """Whether a site refuses to spend because its ledger is behind."""
    try:
        site.release()
    except LedgerError:
        return True
    except PolicyError:
        return False
    return False


BEHIND = "lacks entries that others have seen"


@pytest.fixture
def north(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "north", "north", peers=["east"])


@pytest.fixture
def east(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "east", "east", peers=["north", "west"])


@pytest.fixture
def west(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "west", "west", peers=["north", "east"])


def test_a_site_without_peers_needs_none(tmp_path: Path) -> None:
    alone = Machine(tmp_path / "north", "north")
    for _ in range(3):
        alone.release()


def test_nothing_is_spent_before_a_peer_confirmed_the_ledger_and_again_after_each_release(
    north: Machine, east: Machine
) -> None:
    for _ in range(3):
        assert is_unconfirmed(north)
        assert confirm(north, east) == 1
        # What was confirmed stays so until something is released.
        assert confirm(north, east) == 1
        north.release()
        # To say that one released is not to be confirmed.
        assert is_unconfirmed(north)


def test_nothing_is_spent_before_a_peer_confirmed_the_ledger_since_it_started(north: Machine, east: Machine) -> None:
    confirm(north, east)
    nonces = {north.witnesses.nonce}
    for _ in range(3):
        north.start()
        nonces.add(north.witnesses.nonce)
        assert is_unconfirmed(north)
    assert len(nonces) == 4
    assert {len(bytes.fromhex(nonce)) for nonce in nonces} == {16}
    confirm(north, east)
    north.release()


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_so_many_peers_must_confirm_as_the_policy_says(
    tmp_path: Path, east: Machine, west: Machine, needed: int
) -> None:
    north = Machine(tmp_path / "north", "north", peers=["east", "west"], needed=needed)
    for number, peers in enumerate([[], [east], [east, west]]):
        assert confirm(north, *peers) == number
        assert is_unconfirmed(north) == (number < needed)


def test_the_same_peer_counts_once(tmp_path: Path, east: Machine) -> None:
    north = Machine(tmp_path / "north", "north", peers=["east", "west"])
    assert confirm(north, east, east, east) == 1
    assert is_unconfirmed(north)


def test_a_restored_ledger_file_does_not_get_past_the_sites_own_notes(north: Machine, east: Machine) -> None:
    restore = north.backup()
    confirm(north, east)
    stated = north.release()
    # A coordinator passes heads to everybody, the site itself among them.
    north.witnesses.note([stated])
    restore("ledger.jsonl")
    with pytest.raises(LedgerError, match=BEHIND):
        north.start()


def test_a_site_whose_whole_folder_was_restored_is_stopped_by_a_peer(north: Machine, east: Machine) -> None:
    confirm(north, east)
    north.witnesses.note([north.witnesses.statement()])
    restore = north.backup()
    east.witnesses.note([north.release()])
    restore()
    north.start()
    with pytest.raises(LedgerError, match=BEHIND):
        confirm(north, east)
    assert is_stopped(north)
    # For good: whatever a coordinator sends later, and after a restart again.
    assert north.witnesses.take([]) == 0
    assert is_stopped(north)
    north.start()
    assert is_unconfirmed(north)
    with pytest.raises(LedgerError, match=BEHIND):
        confirm(north, east)


def test_a_site_whose_whole_folder_was_restored_is_stopped_by_its_own_newer_statement(
    north: Machine, east: Machine
) -> None:
    confirm(north, east)
    restore = north.backup()
    stated = north.release()
    restore()
    north.start()
    with pytest.raises(LedgerError, match=BEHIND):
        north.witnesses.note([stated])
    assert is_stopped(north)
    assert stated.hash not in str(north.memory)


def test_a_file_that_is_restored_while_the_site_runs_is_refused(north: Machine, east: Machine) -> None:
    confirm(north, east)
    restore = north.backup()
    east.witnesses.note([north.release()])
    north.witnesses.take(attested(east, north))
    restore()
    # Both were confirmed before: nothing but the ledger itself can tell.
    with pytest.raises(LedgerError, match="lacks entries"):
        north.release()


def test_a_deleted_ledger_that_began_anew_is_stopped(north: Machine, east: Machine) -> None:
    confirm(north, east)
    east.witnesses.note([north.release()])
    for path in list(north.folder.iterdir()):
        path.unlink()
    north.start()
    # The first entries are those of the old one: it is as if it had been restored from its first minute.
    with pytest.raises(LedgerError, match=BEHIND):
        confirm(north, east)
    assert is_stopped(north)
    assert (north.folder / "ledger.jsonl").read_bytes().count(b"\n") == 2


def test_a_ledger_of_another_asset_under_the_same_name_is_stopped(north: Machine, east: Machine) -> None:
    confirm(north, east)
    for path in list(north.folder.iterdir()):
        path.unlink()
    north.asset = "lab"
    north.start()
    with pytest.raises(ProtocolError, match="two ledgers"):
        east.witnesses.note([north.witnesses.statement()])
    assert is_unconfirmed(north)
    # A coordinator that shows the peer nothing of it gets no further.
    with pytest.raises(LedgerError, match=BEHIND):
        north.witnesses.take(attested(east, north))
    assert is_stopped(north)


def test_a_ledger_that_began_anew_beside_the_sites_notes_does_not_open(north: Machine, east: Machine) -> None:
    confirm(north, east)
    north.witnesses.note([north.release()])
    (north.folder / "ledger.jsonl").unlink()
    with pytest.raises(LedgerError, match=BEHIND):
        north.start()


def test_of_two_machines_with_one_ledger_the_later_is_stopped_before_it_releases(
    north: Machine, east: Machine, tmp_path: Path
) -> None:
    confirm(north, east)
    other = north.clone(tmp_path / "other")
    east.witnesses.note([north.release()])
    with pytest.raises(LedgerError, match=BEHIND):
        confirm(other, east)
    assert is_stopped(other)
    assert (north.released, other.released) == (1, 0)


def test_of_two_machines_that_were_confirmed_together_one_makes_one_release_at_most(
    north: Machine, east: Machine, tmp_path: Path
) -> None:
    other = north.clone(tmp_path / "other")
    confirm(north, east)
    confirm(other, east)
    shown = [north.release(), other.release()]
    # No peer saw either head yet; none of them goes on before one does.
    assert is_unconfirmed(north)
    assert is_unconfirmed(other)
    east.witnesses.note(shown[:1])
    with pytest.raises(ProtocolError, match="two ledgers"):
        east.witnesses.note(shown[1:])
    assert north.witnesses.take(attested(east, north)) == 1
    with pytest.raises(LedgerError, match=BEHIND):
        other.witnesses.take(attested(east, other))
    north.release()
    assert is_stopped(other)
    assert (north.released, other.released) == (2, 1)


def test_two_machines_with_one_ledger_do_not_take_turns_before_one_honest_peer(
    north: Machine, east: Machine, tmp_path: Path
) -> None:
    other = north.clone(tmp_path / "other")
    confirm(north, east)
    confirm(other, east)
    for _ in range(4):
        # One states its charges, the other its seals: each head is higher than the last, and none has its number.
        try_to_go_on(north, east, north.release)
        try_to_go_on(other, east, lambda: (other.release(), other.witnesses.statement())[1])
    assert min(north.released, other.released) <= 1


def try_to_go_on(site: Machine, peer: Machine, release: Callable[[], Statement]) -> None:
    """One release, shown to a peer, and the peer's word back; whoever notices something refuses."""
    with suppress(LedgerError, PolicyError, ProtocolError):
        peer.witnesses.note([release()])
        site.witnesses.take(attested(peer, site))


def test_a_head_that_does_not_show_what_was_seen_before_is_not_kept(north: Machine, east: Machine) -> None:
    east.witnesses.note([north.witnesses.statement()])
    before = east.memory
    confirm(north, east)
    stated = north.release()
    east.witnesses.note([replace(stated, past=()).signed(KEYS["north"])])
    assert east.memory == before
    east.witnesses.note([stated])
    assert east.memory != before


def test_a_peer_that_missed_many_releases_confirms_when_it_is_asked_twice(
    tmp_path: Path, east: Machine, west: Machine
) -> None:
    north = Machine(tmp_path / "north", "north", peers=["east", "west"], needed=1)
    confirm(north, west, east)
    for _ in range(30):
        north.release()
        confirm(north, east)
    # It knows what the peer saw last: its statement shows that, and stays short.
    assert len(json.dumps(asdict(north.witnesses.statement()))) < 2000
    assert confirm(north, west) == 2
    # After a restart it learns that from the peer first.
    for _ in range(30):
        north.release()
        confirm(north, east)
    north.start()
    assert [confirm(north, west), confirm(north, west)] == [0, 1]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["turn", "turn", "release", "state", "show", "attest", "restart"]),
        st.integers(0, 1),
        st.integers(0, 9),
    ),
    min_size=4,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_whatever_a_coordinator_passes_on_in_whatever_order_one_clone_makes_one_release_at_most(
    steps: list[tuple[str, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        east = Machine(Path(folder) / "east", "east", peers=["north"])
        first = Machine(Path(folder) / "north", "north", peers=["east"])
        clones = [first, first.clone(Path(folder) / "other")]
        shown: list[Statement] = []
        for clone in clones:
            confirm(clone, east)
        for kind, which, number in steps:
            clone = clones[which]
            # A turn is all that a coordinator does for one release; of the head, it may show the charge or the seal.
            does = {"turn": ["release", *["state"] * (number % 2), "show", "attest"]}.get(kind, [kind])
            with suppress(LedgerError, PolicyError, ProtocolError):
                for one in does:
                    if one in ("release", "state"):
                        shown.append(clone.release() if one == "release" else clone.witnesses.statement())
                    elif one == "show" and shown:
                        east.witnesses.note([shown[-1 - (0 if kind == "turn" else number) % len(shown)]])
                    elif one == "attest":
                        clone.witnesses.take(attested(east, clone))
                    elif one == "restart" and number == 0:
                        clone.start()
        assert min(clone.released for clone in clones) <= 1


def test_two_machines_that_ask_different_peers_meet_at_one_if_more_than_half_must_confirm(tmp_path: Path) -> None:
    peers = {
        name: Machine(tmp_path / name, name, peers=["north", *(other for other in PEERS if other != name)])
        for name in PEERS
    }
    north = Machine(tmp_path / "north", "north", peers=PEERS, needed=2)
    other = north.clone(tmp_path / "other")
    confirm(north, peers["east"], peers["west"])
    confirm(other, peers["west"], peers["south"])
    for peer in ("east", "west"):
        peers[peer].witnesses.note([north.release()] if peer == "east" else [north.witnesses.statement()])
    stated = other.release()
    peers["south"].witnesses.note([stated])
    assert other.witnesses.take(attested(peers["south"], other)) == 1
    assert is_unconfirmed(other)
    with pytest.raises(LedgerError, match=BEHIND):
        other.witnesses.take(attested(peers["west"], other))
    assert confirm(north, peers["east"], peers["west"]) == 2
    north.release()
    assert (north.released, other.released) == (2, 1)


def test_a_coordinator_that_keeps_statements_back_gets_one_release_and_no_more(north: Machine, east: Machine) -> None:
    confirm(north, east)
    north.release()
    for _ in range(3):
        # The peer knows only what it saw before the release.
        assert north.witnesses.take(attested(east, north)) == 0
        assert is_unconfirmed(north)


def test_a_coordinator_that_keeps_a_restored_sites_statement_back_gets_nothing(north: Machine, east: Machine) -> None:
    confirm(north, east)
    restore = north.backup()
    east.witnesses.note([north.release()])
    restore()
    north.start()
    north.witnesses.statement()
    assert north.witnesses.take([]) == 0
    assert is_unconfirmed(north)
    # An attestation of before the restart is one of another nonce.
    with pytest.raises(LedgerError, match=BEHIND):
        north.witnesses.take(attested(east, north))


def test_an_old_attestation_is_worth_nothing(north: Machine, east: Machine) -> None:
    confirm(north, east)
    old = attested(east, north)
    north.start()
    north.witnesses.statement()
    assert north.witnesses.take(old) == 0
    assert is_unconfirmed(north)
    east.witnesses.note([north.witnesses.statement()])
    before = attested(east, north)
    assert north.witnesses.take(before) == 1
    north.release()
    # Of this start, and of before the release.
    assert north.witnesses.take(before) == 0
    assert is_unconfirmed(north)


def test_an_old_attestation_of_an_entry_that_is_gone_stops_a_site_all_the_same(north: Machine, east: Machine) -> None:
    confirm(north, east)
    restore = north.backup()
    east.witnesses.note([north.release()])
    old = attested(east, north)
    restore()
    north.start()
    with pytest.raises(LedgerError, match=BEHIND):
        north.witnesses.take(old)
    assert is_stopped(north)


def forgeries(site: Machine, peer: Machine) -> dict[str, Attestation]:
    """What looks like a peer's word and is none."""
    good = next(one for one in attested(peer, site) if one.site == site.site)
    return {
        "unsigned": replace(good, signature=""),
        "signed by a stranger": good.signed(KEYS["stranger"]),
        "signed by the site itself": good.signed(KEYS["north"]),
        "its own attestation": replace(good, witness="north").signed(KEYS["north"]),
        "a stranger's": replace(good, witness="stranger").signed(KEYS["stranger"]),
        "another peer's name": replace(good, witness="west"),
        "of another site": replace(good, site="west").signed(KEYS["east"]),
        "for another nonce": replace(good, nonce="ab" * 16).signed(KEYS["east"]),
        "for no nonce": replace(good, nonce="").signed(KEYS["east"]),
        "with another nonce put in": replace(
            Attestation.of("east", "north", None, "x").signed(KEYS["east"]), nonce=site.witnesses.nonce
        ),
        "of a longer ledger, changed": replace(good, sequence=good.sequence + 1),
        "of nothing": Attestation.of("east", "north", None, site.witnesses.nonce).signed(KEYS["east"]),
    }


@pytest.mark.parametrize(
    "which",
    [
        "unsigned",
        "signed by a stranger",
        "signed by the site itself",
        "its own attestation",
        "a stranger's",
        "another peer's name",
        "of another site",
        "for another nonce",
        "for no nonce",
        "with another nonce put in",
        "of a longer ledger, changed",
        "of nothing",
    ],
)
def test_a_forged_attestation_confirms_nothing_and_stops_nobody(tmp_path: Path, east: Machine, which: str) -> None:
    north = Machine(tmp_path / "north", "north", peers=["east", "west"], needed=1)
    east.witnesses.note([north.witnesses.statement()])
    assert north.witnesses.take([forgeries(north, east)[which]]) == 0
    assert is_unconfirmed(north)
    # The true one counts, whatever came before it.
    assert north.witnesses.take(attested(east, north)) == 1
    north.release()


def test_a_peer_that_never_saw_the_site_does_not_confirm_it(north: Machine, east: Machine) -> None:
    north.witnesses.statement()
    assert [one.sequence for one in attested(east, north) if one.site == "north"] == [NOTHING]
    assert north.witnesses.take(attested(east, north)) == 0
    assert is_unconfirmed(north)


def test_a_site_attests_every_peer_and_never_itself(east: Machine, north: Machine) -> None:
    stated = north.witnesses.statement()
    east.witnesses.note([stated])
    said = {one.site: one for one in east.witnesses.attest({"north": "asked", "east": "x", "stranger": "y"})}
    assert set(said) == {"north", "west"}
    assert all(one.witness == "east" and one.is_by(KEYS["east"].public) for one in said.values())
    assert (said["north"].nonce, said["west"].nonce) == ("asked", "")
    assert (said["north"].ledger, said["north"].sequence, said["north"].hash) == (
        stated.ledger,
        stated.sequence,
        stated.hash,
    )
    assert (said["west"].sequence, said["west"].hash) == (NOTHING, "")


def head(site: str, sequence: int, *, history: str = "a", ledger: str = "aa") -> Statement:
    past = {number: f"{history}{number:063x}" for number in range(sequence)}
    return state_head(site, Head(ledger * 32, sequence, f"{history}{sequence:063x}"), KEYS[site], past=past)


def written(statement: Statement) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(asdict(statement))))


def test_the_newest_head_of_each_peer_is_kept_and_comes_back_after_a_restart(east: Machine) -> None:
    east.witnesses.note([head("north", 3), head("west", 9)])
    east.witnesses.note([head("north", 5)])
    east.witnesses.note([head("north", 4), head("west", 8)])
    expected = {"north": written(head("north", 5)), "west": written(head("west", 9))}
    assert east.memory == expected
    east.start()
    assert {one.site: one.sequence for one in east.witnesses.attest({})} == {"north": 5, "west": 9}
    east.witnesses.note([head("north", 4)])
    assert east.memory == expected


def test_what_is_seen_is_on_disk_before_it_is_attested(east: Machine) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(east.folder, patch)
        east.witnesses.note([head("north", 3)])
        kept = disk.on_disk(east.folder / "witness.json")
        assert kept is not None
        assert json.loads(kept)["seen"] == {"north": written(head("north", 3))}


@pytest.mark.parametrize("change", range(1, 7))
@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC])
def test_a_head_that_cannot_be_kept_is_an_error_and_the_older_ones_stay(
    east: Machine, fault: Fault, change: int
) -> None:
    east.witnesses.note([head("north", 3)])
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(east.folder, patch)
        disk.break_at(change, fault)
        with pytest.raises(LedgerError, match="cannot be written"):
            east.witnesses.note([head("north", 4)])
        disk.restart()
    # What is not kept is not attested: a restart would forget it.
    assert {one.site: one.sequence for one in east.witnesses.attest({})} == {"north": 3, "west": NOTHING}
    assert east.memory in ({"north": written(head("north", 3))}, {"north": written(head("north", 4))})
    east.start()


@pytest.mark.parametrize(
    "fork",
    [head("north", 5, history="b"), head("north", 9, ledger="bb"), head("north", 3, ledger="bb")],
    ids=["another entry", "another longer ledger", "another shorter ledger"],
)
def test_a_fork_that_is_shown_to_a_peer_is_refused_and_what_it_saw_first_stands(east: Machine, fork: Statement) -> None:
    east.witnesses.note([head("north", 5)])
    before = east.memory
    for statements in ([fork], [head("west", 1), fork], [fork, head("west", 1)]):
        with pytest.raises(ProtocolError, match="site north: shows two ledgers"):
            east.witnesses.note(statements)
        assert east.memory == before
    east.start()
    with pytest.raises(ProtocolError, match="site north: shows two ledgers"):
        east.witnesses.note([fork])
    assert {one.site: one.sequence for one in east.witnesses.attest({})} == {"north": 5, "west": NOTHING}


@pytest.mark.parametrize(
    ("statements", "is_fork"),
    [
        ([head("north", 7), head("north", 5)], False),
        ([head("north", 7), head("north", 7, history="b")], True),
    ],
    ids=["older", "fork"],
)
def test_statements_of_one_list_are_held_against_each_other(
    east: Machine, statements: list[Statement], is_fork: bool
) -> None:
    if is_fork:
        with pytest.raises(ProtocolError, match="two ledgers"):
            east.witnesses.note(statements)
    else:
        east.witnesses.note(statements)
        assert {one.site: one.sequence for one in east.witnesses.attest({})} == {"north": 7, "west": NOTHING}


@pytest.mark.parametrize(
    "statement",
    [
        replace(head("north", 5), signature=""),
        replace(head("north", 5), sequence=6),
        replace(head("north", 5), site="west"),
        head("north", 5).signed(KEYS["stranger"]),
        head("north", 5).signed(KEYS["west"]),
        # In the name of the site itself.
        replace(head("north", 5), site="east"),
    ],
    ids=["unsigned", "changed", "another name", "a stranger", "another peer", "its own name"],
)
def test_what_is_said_in_a_sites_name_and_not_signed_by_it_is_refused(east: Machine, statement: Statement) -> None:
    with pytest.raises(ProtocolError, match="did not sign"):
        east.witnesses.note([head("west", 2), statement])
    assert east.memory == {}


def test_a_statement_of_a_site_that_is_no_peer_is_passed_over(east: Machine) -> None:
    east.witnesses.note([head("stranger", 5), head("north", 1)])
    assert set(east.memory) == {"north"}


def test_a_peer_of_before_is_forgotten_when_the_policy_names_it_no_more(east: Machine, tmp_path: Path) -> None:
    east.witnesses.note([head("north", 5), head("west", 2)])
    again = Machine(east.folder, "east", peers=["north"])
    assert {one.site: one.sequence for one in again.witnesses.attest({})} == {"north": 5}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"schema":"privshare.witness/1"}',
        b'{"schema":"privshare.witness/1","seen":[]}',
        b'{"schema":"privshare.witness/1","seen":{"north":null}}',
        b'{"schema":"privshare.witness/1","seen":{"north":{"site":"north"}}}',
        b'{"schema":"privshare.witness/2","seen":{}}',
        b'{"seen":{}}',
        b"\xff\xfe",
    ],
)
def test_notes_that_were_damaged_are_refused(east: Machine, body: bytes) -> None:
    (east.folder / "witness.json").write_bytes(body)
    with pytest.raises(LedgerError, match=r"witness\.json"):
        east.start()


def test_notes_that_were_written_by_hand_say_nothing(east: Machine) -> None:
    east.witnesses.note([head("north", 5)])
    forged = {**east.memory, "west": asdict(replace(head("north", 5), site="west"))}
    forged["north"] = {**forged["north"], "sequence": 3}
    (east.folder / "witness.json").write_text(json.dumps({"schema": "privshare.witness/1", "seen": forged}))
    east.start()
    assert {one.site: one.sequence for one in east.witnesses.attest({})} == {"north": NOTHING, "west": NOTHING}


def test_three_sites_confirm_each_other_round_after_round(tmp_path: Path) -> None:
    names = ("north", "east", "west")
    sites = [Machine(tmp_path / name, name, peers=[one for one in names if one != name]) for name in names]
    for number in range(4):
        if number == 2:
            sites[1].start()
        heads = [site.witnesses.statement() for site in sites]
        nonces = {site.site: site.witnesses.nonce for site in sites}
        said = []
        for site in sites:
            site.witnesses.note(heads)
            said += site.witnesses.attest(nonces)
        assert [site.witnesses.take(said) for site in sites] == [2, 2, 2]
        for site in sites:
            site.release()
    assert [site.released for site in sites] == [4, 4, 4]


# Many peers


def test_of_many_peers_only_those_that_are_asked_confirm_and_any_of_them_may_stop_a_site(tmp_path: Path) -> None:
    names = [f"peer_{at:02}" for at in range(20)]
    KEYS.update({name: SigningKey.from_seed(name.encode().ljust(32, b".")) for name in names})
    north = Machine(tmp_path / "north", "north", peers=names)
    asked = set(north.witnesses.asked)
    assert len(asked) == MOST_WITNESSES
    peers = {name: Machine(tmp_path / name, name, peers=["north"]) for name in names}
    others = [peers[name] for name in names if name not in asked]
    assert confirm(north, *others) == 0
    assert is_unconfirmed(north)
    assert confirm(north, *(peers[name] for name in asked)) == MOST_WITNESSES
    restore = north.backup()
    stated = north.release()
    restore()
    north.start()
    others[0].witnesses.note([stated])
    with pytest.raises(LedgerError, match=BEHIND):
        north.witnesses.take(attested(others[0], north))
    assert is_stopped(north)


def test_a_site_attests_those_whose_heads_it_was_told(north: Machine, east: Machine) -> None:
    east.witnesses.note([north.witnesses.statement()])
    assert [one.site for one in east.witnesses.attest({}, of={"north", "stranger", "east"})] == ["north"]
    assert east.witnesses.attest({"north": "n"}, of=()) == []
