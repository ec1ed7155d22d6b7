"""A site of a study with masks: what it sends, whom it masks with, what it refuses, and what it keeps."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

import client.masks
from client.masks import Masks
from client.site import Site
from common.errors import LedgerError, PolicyError
from common.privacy.events import GaussianEvent
from common.privacy.noise import NoiseSource, SeededNoise
from common.wire.messages import Reply
from common.wire.secure_sum import MaskAnnouncement, MaskKey, Participants, masked
from tests.client.homes import (
    IDENTITY,
    MEASUREMENTS,
    PEERS,
    PRIVACY,
    ROWS,
    SINGLE,
    STUDY,
    WINDOWED,
    Forbidden,
    Home,
    confirm,
    hidden,
    make_home,
    refused,
    write_policy,
)
from tests.client.rounds import kept_log

MASKED = hidden(STUDY)
MEMBERS = {"north": IDENTITY.public, **{peer: key.public for peer, key in PEERS.items()}}
# No statistical test below fails by chance more often than this.
FALSE_ALARM = 1e-9


@dataclass
class Met:
    """A site that agreed on masks with its peers in a run, and the peers' keys."""

    home: Home
    site: Site
    run: str
    keys: Mapping[str, MaskKey]
    participants: Participants

    def body(self, kind: str, **changes: Any) -> bytes:
        """A release that is right, unless the changes say otherwise."""
        options = {"participants": self.participants.digest, **changes.pop("options", {})}
        return self.home.ask(kind, run=self.run, options=options, **changes).encode()

    def send(self, kind: str, **changes: Any) -> Reply:
        """The reply to `body`, which is none that refuses."""
        answer = self.site.handle(self.body(kind, **changes))
        assert refused(answer) is None
        return Reply.decode(answer)

    def noised(self, kind: str, reply: Reply, **changes: Any) -> np.ndarray:
        """What lies under the mask of a reply: the peers mask zeros, and all is added up."""
        body = self.body(kind, **changes)
        asked = {"request_identity": f"{self.run}/{changes.get('name', kind)}", "request_digest": sha256(body)}
        zeros = np.zeros(len(reply.arrays["masked"]), dtype=np.int64)
        total = reply.arrays["masked"].copy()
        for key in self.keys.values():
            total += masked(zeros, key, self.participants, **asked)
        return total.view(np.int64)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def own_of(home: Home, site: Site, run: str = "run-1") -> MaskAnnouncement:
    return MaskAnnouncement.from_dict(Reply.decode(site.handle(home.ask("describe", run=run).encode())).facts["mask"])


def of_peers(home: Home, keys: Mapping[str, MaskKey], run: str = "run-1") -> list[MaskAnnouncement]:
    study = home.study.digest()
    return [key.announce(peer, study=study, run=run, identity=PEERS[peer]) for peer, key in keys.items()]


def told(home: Home, announcements: list[MaskAnnouncement], run: str = "run-1") -> bytes:
    return home.ask("masks", run=run, options={"announcements": list(map(asdict, announcements))}).encode()


def meet(home: Home, site: Site, run: str = "run-1") -> Met:
    """Agree on masks, as a coordinator has sites do it."""
    keys = {peer: MaskKey.generate() for peer in PEERS}
    own = own_of(home, site, run)
    said = [*of_peers(home, keys, run), own]
    answer = site.handle(told(home, said, run))
    assert refused(answer) is None
    participants = Participants.verified(said, own=own, peers=MEMBERS)
    assert dict(Reply.decode(answer).facts) == {"participants": participants.digest}
    return Met(home, site, run, keys, participants)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A site of a study with masks; its peers do not have to confirm anything."""
    return make_home(tmp_path / "north", study=MASKED, peers=PEERS, witnesses=0)


@pytest.fixture
def met(home: Home) -> Met:
    return meet(home, home.open())


# --- what it sends


@pytest.mark.parametrize("kind", MEASUREMENTS)
@pytest.mark.parametrize("study", [MASKED, hidden(WINDOWED)], ids=["records", "windows"])
def test_each_release_is_sent_under_a_mask_and_what_lies_under_it_is_that_of_a_study_without(
    tmp_path: Path, kind: str, study: dict[str, Any]
) -> None:
    rows = ROWS if study is MASKED else SINGLE
    home = make_home(tmp_path / "masked", rows, study=study, peers=PEERS, witnesses=0)
    plain = make_home(tmp_path / "plain", rows, study={**study, "privacy": PRIVACY})
    met = meet(home, home.open())
    reply = met.send(kind)
    assert set(reply.arrays) == {"masked"}
    assert reply.arrays["masked"].dtype == np.uint64
    assert set(reply.facts) == {"event", "ledger_head", "spending", "participants"}
    assert reply.facts["participants"] == met.participants.digest
    noised = met.noised(kind, reply)
    assert (noised != reply.arrays["masked"].view(np.int64)).all()
    same = Reply.decode(plain.open().handle(plain.ask(kind).encode()))
    assert same.facts["event"] == reply.facts["event"]
    if kind == "embedding":  # its features follow from the study's digest
        assert np.abs(noised).max() < 100 * GaussianEvent.from_dict(dict(reply.facts["event"])).noise_stddev
    else:
        assert (noised == same.arrays["counts"]).all()


def test_what_is_sent_is_uniform(home: Home) -> None:
    sent, under = [], []
    site = home.open()
    for number in range(20):
        met = meet(home, site, f"run-{number}")
        reply = met.send("one_way", options={"share": 0.04})
        sent.append(reply.arrays["masked"])
        under.append(met.noised("one_way", reply, options={"share": 0.04}))
    p = [chisquare(np.bincount(np.concatenate(one).view(np.uint8), minlength=256)).pvalue for one in (sent, under)]
    assert p[0] > FALSE_ALARM > p[1]


@pytest.mark.parametrize("flag", [{"noise_trust": "local"}, {"masked": False}, {"masks": None}, {"open": True}])
def test_nothing_in_a_request_takes_the_mask_off(met: Met, flag: dict[str, Any]) -> None:
    assert set(met.send("one_way", options=flag).arrays) == {"masked"}


def test_a_study_without_masks_knows_of_none(tmp_path: Path) -> None:
    home = make_home(tmp_path / "plain", peers=PEERS, witnesses=0)
    site = home.open()
    assert "mask" not in Reply.decode(site.handle(home.ask("describe").encode())).facts
    assert refused(site.handle(home.ask("masks").encode())) == "POLICY_REFUSED"
    reply = Reply.decode(site.handle(home.ask("one_way", options={"participants": "0f" * 32}).encode()))
    assert set(reply.arrays) == {"counts"}
    assert not (home.folder / "state" / "masks.json").exists()


# --- whom it masks with


def test_a_request_of_no_agreed_masks_is_refused_and_spends_nothing(home: Home) -> None:
    noise = Forbidden()
    site = home.open(noise)  # type: ignore[arg-type]
    requests: dict[str, Callable[[Met], bytes]] = {
        "names nobody": lambda met: met.home.ask("one_way").encode(),
        "names others": lambda met: met.body("one_way", options={"participants": "0f" * 32}),
        "names the digest in capitals": lambda met: met.body(
            "one_way", options={"participants": met.participants.digest.upper()}
        ),
        "names a list": lambda met: met.body("one_way", options={"participants": [met.participants.digest]}),
        "is of another run": lambda met: replace(met, run="run-2").body("one_way"),
    }
    assert refused(site.handle(home.ask("one_way", options={"participants": ""}).encode())) == "UNMASKED"
    own_of(home, site)  # announced, and nobody was told yet
    assert refused(site.handle(home.ask("one_way", options={"participants": ""}).encode())) == "UNMASKED"
    met = meet(home, site)
    for what, body in requests.items():
        assert refused(site.handle(body(met))) == "UNMASKED", what
    for kind in MEASUREMENTS:
        assert refused(site.handle(home.ask(kind).encode())) == "UNMASKED", kind
    assert (home.charged, noise.asked) == ([], [])
    # The same site does draw where all is right.
    assert refused(site.handle(met.body("one_way"))) == "INTERNAL"
    assert noise.asked == ["run-1/one_way"]


def stranger(home: Home) -> MaskAnnouncement:
    return MaskKey.generate().announce("south", study=home.study.digest(), run="run-1", identity=PEERS["east"])


FOREIGN: dict[str, tuple[str, Callable[[Home, list[MaskAnnouncement]], list[MaskAnnouncement]]]] = {
    "a site is missing": ("TOO_FEW_SITES", lambda _, said: said[1:]),
    "two sites are missing": ("TOO_FEW_SITES", lambda _, said: said[2:]),
    "this site is missing": ("TOO_FEW_SITES", lambda _, said: said[:-1]),
    "a site too many": ("PROTOCOL", lambda home, said: [*said, stranger(home)]),
    "one twice": ("PROTOCOL", lambda _, said: [*said, said[0]]),
    "a key that its site did not sign": (
        "PROTOCOL",
        lambda _, said: [replace(said[0], public=MaskKey.generate().public), *said[1:]],
    ),
    "a key that another site signed": (
        "PROTOCOL",
        lambda home, said: [
            MaskKey.generate().announce("east", study=home.study.digest(), run="run-1", identity=PEERS["west"]),
            *said[1:],
        ],
    ),
    "a key of another run": (
        "PROTOCOL",
        lambda home, said: [*of_peers(home, {"east": MaskKey.generate()}, "run-0"), *said[1:]],
    ),
    "a key of another study": (
        "PROTOCOL",
        lambda _, said: [
            MaskKey.generate().announce("east", study="0f" * 32, run="run-1", identity=PEERS["east"]),
            *said[1:],
        ],
    ),
    "a key of this site that it does not have": (
        "PROTOCOL",
        lambda home, said: [
            *said[:-1],
            MaskKey.generate().announce("north", study=home.study.digest(), run="run-1", identity=IDENTITY),
        ],
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_participants_that_are_not_all_members_of_the_policy_are_refused(home: Home, what: str) -> None:
    noise, (rule, change) = Forbidden(), FOREIGN[what]
    site = home.open(noise)  # type: ignore[arg-type]
    said = [*of_peers(home, {peer: MaskKey.generate() for peer in PEERS}), own_of(home, site)]
    wrong = change(home, said)
    assert refused(site.handle(told(home, wrong))) == rule
    digest = Participants(tuple(sorted(wrong, key=lambda one: one.site))).digest
    body = home.ask("one_way", options={"participants": digest}).encode()
    assert refused(site.handle(body)) == "UNMASKED"
    # Nor do they take the place of those that were right.
    assert refused(site.handle(told(home, said))) is None
    assert refused(site.handle(told(home, wrong))) == rule
    assert refused(site.handle(body)) == "UNMASKED"
    assert (home.charged, noise.asked) == ([], [])


@pytest.mark.parametrize(
    ("announcements", "rule"),
    [(None, "POLICY_REFUSED"), ("all", "POLICY_REFUSED"), ([7], "PROTOCOL"), ([{}], "PROTOCOL")],
)
def test_what_is_no_announcement_is_refused(met: Met, announcements: object, rule: str) -> None:
    body = met.home.ask("masks", options={"announcements": announcements}).encode()
    assert refused(met.site.handle(body)) == rule
    met.send("one_way")


def test_an_unconfirmed_ledger_is_told_of_first(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north", study=MASKED, peers=PEERS)
    met = meet(home, home.open())
    for body in (met.body("one_way"), home.ask("one_way").encode()):
        assert refused(met.site.handle(body)) == "UNCONFIRMED"
    confirm(home, met.site)
    met.send("one_way")


def test_a_sum_that_could_leave_the_integers_is_refused_before_anything_is_spent(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Forbidden()
    met = meet(home, home.open(noise))  # type: ignore[arg-type]
    monkeypatch.setattr(client.masks, "MAX_COUNT", 2**62)
    assert refused(met.site.handle(met.body("one_way"))) == "POLICY_REFUSED"
    assert (home.charged, noise.asked) == ([], [])


# --- again


def test_what_was_answered_is_answered_with_the_same_bytes_and_never_masked_anew(home: Home) -> None:
    met = meet(home, home.open())
    body = met.body("one_way")
    first = met.site.handle(body)
    noise = Forbidden()
    later = home.open(noise)  # type: ignore[arg-type]
    for before in (
        lambda: None,
        lambda: meet(home, later),  # the same key, with other peers' keys
        lambda: later.handle(told(home, [])),  # the run is closed
        lambda: meet(home, later, "run-2"),
        (home.folder / "state" / "masks.json").unlink,
    ):
        before()
        assert later.handle(body) == met.site.handle(body) == first
    assert home.charged == ["run-1/one_way"]
    assert noise.asked == []
    # Under the same name nothing else, also where only the participants are others.
    other = met.body("one_way", options={"participants": "0f" * 32})
    assert refused(later.handle(other)) == "POLICY_REFUSED"


def test_a_site_that_restarts_in_a_run_has_the_same_key_and_the_same_participants(home: Home) -> None:
    met = meet(home, home.open())
    met.send("one_way")
    own = own_of(home, met.site)
    again = replace(met, site=home.open())
    reply = again.send("tables")
    plain = make_home(home.folder.parent / "plain")
    counts = Reply.decode(plain.open().handle(plain.ask("tables").encode())).arrays["counts"]
    assert (again.noised("tables", reply) == counts).all()
    assert own_of(home, again.site) == own


def test_each_run_has_a_key_of_its_own_and_only_the_newest_is_kept(home: Home) -> None:
    site = home.open()
    first, kept = own_of(home, site), key_of(home)
    second = own_of(home, site, "run-2")
    assert first.public != second.public
    assert key_of(home) != kept
    assert not [name for name, body in home.state.items() if kept.encode() in body]
    # Back in the first run it has a third one, and participants that it was told of before are none.
    assert own_of(home, site).public not in (first.public, second.public)
    assert refused(site.handle(home.ask("one_way", options={"participants": ""}).encode())) == "UNMASKED"


def key_of(home: Home) -> str:
    """The private key on disk."""
    key = json.loads((home.folder / "state" / "masks.json").read_text())["key"]
    assert isinstance(key, str)
    return key


# --- what it keeps


def test_the_key_is_its_owners_alone_and_gone_when_the_run_is_closed(met: Met) -> None:
    path = met.home.folder / "state" / "masks.json"
    assert path.stat().st_mode & 0o777 == 0o600
    own, kept = own_of(met.home, met.site), key_of(met.home)
    assert [name for name, body in met.home.state.items() if kept.encode() in body] == ["masks.json"]
    assert refused(met.site.handle(told(met.home, []))) is None
    assert not [name for name, body in met.home.state.items() if kept.encode() in body]
    for site in (met.site, met.home.open()):
        # What is over can be taken up, and nothing more is released in it.
        assert own_of(met.home, site) == own
        assert refused(site.handle(told(met.home, list(met.participants.announcements)))) is None
        assert refused(site.handle(told(met.home, []))) is None
        assert refused(site.handle(met.body("one_way"))) == "UNMASKED"
    assert path.stat().st_mode & 0o777 == 0o600
    assert met.home.charged == []


def test_what_lies_under_a_mask_is_in_no_file_and_no_log(met: Met) -> None:
    under = {}
    with kept_log() as log:
        for kind in MEASUREMENTS:
            under[kind] = met.noised(kind, met.send(kind))
    names = set(met.home.state)
    assert not [name for name in names if name.startswith("releases")]
    found = {**met.home.state, "ledger": met.home.ledger.read_bytes(), "log": str([vars(one) for one in log]).encode()}
    sealed = b"".join(met.home.sealed.values())
    for kind, noised in under.items():
        for part in (noised, noised[:2], noised[-2:]):
            shown = (part.tobytes(), json.dumps(part.tolist()).encode(), str(part).encode())
            assert not [name for name, body in found.items() if any(one in body for one in shown)], kind
    # The same search finds what was sent.
    assert met.site.handle(met.body("one_way")) in sealed


def test_the_vector_is_wiped_once_it_is_masked(met: Met) -> None:
    mask = met.site._masks.of(replace(met.home.ask("one_way"), options={"participants": met.participants.digest}), "d")
    noised = np.arange(5)
    hidden = mask.hide(noised)
    assert not noised.any()
    assert hidden.any()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"schema": "privshare.masks/2"}'])
def test_a_file_that_cannot_be_read_is_as_good_as_none(met: Met, damage: bytes) -> None:
    own = own_of(met.home, met.site)
    (met.home.folder / "state" / "masks.json").write_bytes(damage)
    site = met.home.open()
    assert refused(site.handle(met.body("one_way"))) == "UNMASKED"
    assert own_of(met.home, site) != own


@pytest.mark.parametrize(
    ("name", "value"),
    [("key", "8" * 64), ("key", "0f"), ("key", 7), ("schema", "privshare.masks/2"), ("own", None)],
)
def test_a_file_with_a_part_that_does_not_fit_is_as_good_as_none(met: Met, name: str, value: object) -> None:
    path = met.home.folder / "state" / "masks.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, name: value}))
    assert refused(met.home.open().handle(met.body("one_way"))) == "UNMASKED"
    path.write_text(json.dumps(content))
    assert refused(met.home.open().handle(met.body("one_way"))) is None


def test_participants_are_held_against_the_policy_anew_at_each_start(met: Met) -> None:
    write_policy(met.home, witnesses=0, peers={"east": PEERS["east"].public})
    assert refused(met.home.open().handle(met.body("one_way"))) == "UNMASKED"


def test_a_key_is_on_disk_before_it_is_announced(met: Met, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    masks = Masks(
        met.home.folder / "other.json", site="north", study=met.home.study.digest(), identity=IDENTITY, peers={}
    )
    monkeypatch.setattr(client.masks, "write_private", fail)
    with pytest.raises(LedgerError, match="cannot be written"):
        masks.announce("run-1")
    assert refused(met.site.handle(met.home.ask("describe", run="run-2").encode())) == "LEDGER_INVALID"
    monkeypatch.undo()
    # The key of the run before is still the one that it has.
    met.send("one_way")


# --- what a policy says


def test_a_policy_may_demand_masks(tmp_path: Path) -> None:
    demanding = {"peers": PEERS, "witnesses": 0, "noise_trust": "masked"}
    make_home(tmp_path / "masked", study=MASKED, **demanding).open()  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="noise_trust: the policy demands masks"):
        make_home(tmp_path / "plain", **demanding).open()  # type: ignore[arg-type]


def test_a_site_without_peers_takes_part_in_no_study_with_masks(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="peers: masks need another site"):
        make_home(tmp_path / "north", study=MASKED).open()


# --- a whole federation


def test_masks_of_real_sites_cancel(tmp_path: Path) -> None:
    identities = {"north": IDENTITY, **PEERS}
    sites: dict[str, tuple[Home, Site]] = {}
    for name, identity in identities.items():
        home = make_home(tmp_path / name, study=MASKED, site=name, identity=identity)
        peers = {peer: key for peer, key in MEMBERS.items() if peer != name}
        write_policy(home, identity, site=name, peers=peers, witnesses=0)
        sites[name] = home, home.open(noise_of(name))
    said = [own_of(*pair) for pair in sites.values()]
    (digest,) = {Reply.decode(site.handle(told(home, said))).facts["participants"] for home, site in sites.values()}
    total: Any = np.uint64(0)
    expected: Any = 0
    for name, (home, site) in sites.items():
        reply = Reply.decode(site.handle(home.ask("one_way", options={"participants": digest}).encode()))
        total = total + reply.arrays["masked"]
        plain = make_home(tmp_path / f"plain-{name}", identity=identity, site="north")
        answer = Reply.decode(plain.open(noise_of(name)).handle(plain.ask("one_way").encode()))
        expected = expected + answer.arrays["counts"]
    assert (total.view(np.int64) == expected).all()


def noise_of(name: str) -> NoiseSource:
    return SeededNoise(name.encode())
