"""A site's policy: who signed it, until when, for which study, how much may be spent, and who must watch."""

import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from client.policy import load_policy, read_policy, sign_policy
from common.errors import ExitCode, LedgerError, PolicyError, StudyError
from common.privacy.accountants import RdpAccountant
from common.privacy.budget import mu_of
from common.privacy.events import GaussianEvent
from common.privacy.ledger import read_ledger
from common.privacy.noise import SeededNoise
from common.privacy.signatures import SigningKey
from common.privacy.witness import MOST_WITNESSES
from common.wire.messages import KINDS, Reply
from tests.client.homes import (
    IDENTITY,
    MEASUREMENTS,
    PEERS,
    PRIVACY,
    SINGLE,
    STUDY,
    TODAY,
    WINDOWED,
    Clock,
    Home,
    attested,
    confirm,
    forbidden,
    make_either,
    make_home,
    refused,
    sampled,
    write_policy,
    write_yaml,
)


def check_closed(home: Home, reason: str, fault: type[Exception] = PolicyError) -> None:
    """The site does not open, says why in a line, and leaves no ledger."""
    with pytest.raises(fault, match=reason) as refusal:
        home.open()
    assert "\n" not in str(refusal.value)
    assert not home.ledger.exists()


# --- who signed it


def test_a_policy_with_any_byte_changed_is_not_the_one_that_was_signed(home: Home) -> None:
    path = home.folder / "policy.yaml"
    body = path.read_bytes()
    for place in range(len(body)):
        path.write_bytes(body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])
        with pytest.raises(PolicyError, match="was changed since this site signed it"):
            load_policy(path, public=IDENTITY.public)
    for changed in (b"", body[:-1], body + b"\n", body.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + body):
        path.write_bytes(changed)
        check_closed(home, "was changed since this site signed it")
    path.write_bytes(body)
    home.open()


def test_a_signature_with_any_letter_changed_is_none(home: Home) -> None:
    path = home.folder / "policy.yaml.sig"
    body = path.read_bytes()
    assert body == (IDENTITY.sign((home.folder / "policy.yaml").read_bytes(), purpose="policy") + "\n").encode()
    for place in range(len(body) - 1):
        path.write_bytes(body[:place] + (b"1" if body[place : place + 1] == b"0" else b"0") + body[place + 1 :])
        with pytest.raises(PolicyError, match="was changed since this site signed it"):
            load_policy(home.folder / "policy.yaml", public=IDENTITY.public)


def test_a_policy_without_a_signature_is_refused(home: Home) -> None:
    path = home.folder / "policy.yaml.sig"
    for body in (None, b"", b"\n", b"\xff" * 128, b"0" * 127, b"z" * 128):
        path.unlink(missing_ok=True)
        if body is not None:
            path.write_bytes(body)
        check_closed(home, r"not signed by this site|was changed since")


def test_a_site_without_a_policy_does_not_open(home: Home) -> None:
    (home.folder / "policy.yaml").unlink()
    check_closed(home, "not signed by this site")


def test_a_signature_of_another_key_or_for_another_purpose_is_none(home: Home) -> None:
    path = home.folder / "policy.yaml"
    sign_policy(path, PEERS["east"])
    check_closed(home, "was changed since this site signed it")
    for purpose in ("ledger entry", "statement", ""):
        signature = IDENTITY.sign(path.read_bytes(), purpose=purpose)
        path.with_name("policy.yaml.sig").write_text(signature)
        check_closed(home, "was changed since this site signed it")
    sign_policy(path, IDENTITY)
    home.open()


def test_the_signature_of_an_older_policy_is_none_for_a_new_one(home: Home) -> None:
    sig = home.folder / "policy.yaml.sig"
    old = sig.read_bytes()
    write_policy(home, max_epsilon=100)
    sig.write_bytes(old)
    check_closed(home, "was changed since this site signed it")


def test_the_policy_of_another_site_is_refused_with_and_without_its_keys(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north")
    other = make_home(tmp_path / "south", site="south", identity=PEERS["west"])
    for name in ("policy.yaml", "policy.yaml.sig"):
        shutil.copy(other.folder / name, home.folder / name)
    check_closed(home, "was changed since this site signed it")
    # Even signed here: it says whose it is.
    sign_policy(home.folder / "policy.yaml", IDENTITY)
    check_closed(home, "the policy of another site")


def test_a_policy_is_checked_before_it_is_read(home: Home) -> None:
    # YAML of a stranger is not parsed.
    (home.folder / "policy.yaml").write_text("a: [")
    check_closed(home, "was changed since this site signed it")


# --- its form


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "privshare.policy/2"},
        {"site": "../north"},
        {"site": "n" * 65},
        {"asset": ""},
        {"approved": "abc"},
        {"approved": "AB" * 32},
        {"coordinator": None},
        {"coordinator": "0" * 63},
        {"max_epsilon": 0},
        {"max_epsilon": -1},
        {"max_epsilon": float("inf")},
        {"max_epsilon": float("nan")},
        {"max_epsilon": True},
        {"max_delta": 0},
        {"max_delta": 1},
        {"total_epsilon": 0},
        {"total_delta": 1},
        {"total_delta": None},
        {"least_noise": 0},
        {"least_noise": -1},
        {"least_noise": 1e-200},
        {"least_noise": 1e200},
        {"columns": "colour"},
        {"expires": "soon"},
        {"expires": "2030-02-30"},
        {"expires": 20300517},
        {"peers": ["east"]},
        {"peers": {"east": "abc"}},
        {"peers": {"../east": PEERS["east"].public}},
        {"peers": {"north": PEERS["east"].public}},
        {"peers": dict.fromkeys(("east", "west"), PEERS["east"].public)},
        {"witnesses": 1},
        {"witnesses": -1},
        {"witnesses": 0.5},
        {"max_budget": 3},
    ],
)
def test_a_policy_out_of_form_is_refused_by_the_name_of_the_field(tmp_path: Path, change: dict[str, Any]) -> None:
    (name,) = change
    home = make_home(tmp_path / "north")
    write_policy(home, **change)
    check_closed(home, name, StudyError)
    with pytest.raises(StudyError, match=name):
        read_policy(home.folder / "policy.yaml")


def test_no_more_peers_can_be_demanded_than_are_asked(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north")
    peers = {f"peer_{at}": f"{at:064x}" for at in range(20)}
    write_policy(home, peers=peers, witnesses=MOST_WITNESSES + 1)
    check_closed(home, "witnesses", StudyError)
    write_policy(home, peers=peers, witnesses=MOST_WITNESSES)
    facts = Reply.decode(home.open().handle(home.ask("describe").encode())).facts
    assert len(facts["witnesses"]) == MOST_WITNESSES


@pytest.mark.parametrize(
    "name",
    [
        *("schema", "site", "asset", "approved", "coordinator"),
        *("max_epsilon", "max_delta", "total_epsilon"),
    ],
)
def test_a_policy_states_what_it_allows_and_leaves_nothing_to_defaults(home: Home, name: str) -> None:
    path = home.folder / "policy.yaml"
    write_yaml(path, {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != name})
    sign_policy(path, IDENTITY)
    check_closed(home, f"{name}: the key is needed", StudyError)


@pytest.mark.parametrize(
    "change",
    [{"site": "../north"}, {"site": 7.5}, {"max_epsilon": 3}, {"peers": {}}, {"approved": "0" * 64}, {"ledger": None}],
)
def test_a_site_file_out_of_form_is_refused(home: Home, change: dict[str, Any]) -> None:
    # What a site allows is in the signed policy and nowhere else.
    path = home.folder / "site.yaml"
    write_yaml(path, {**yaml.safe_load(path.read_text()), **change})
    check_closed(home, next(iter(change)), StudyError)


# --- until when


def test_a_policy_holds_through_its_last_day_and_not_a_day_longer(tmp_path: Path) -> None:
    home, clock = make_home(tmp_path / "north", expires=TODAY), Clock()
    site = home.open(today=clock)
    asked = home.ask("one_way").encode()
    assert refused(site.handle(asked)) is None
    before = home.ledger.read_bytes()
    clock.day += timedelta(days=1)
    for kind in KINDS:
        assert refused(site.handle(home.ask(kind).encode())) == "POLICY_REFUSED"
    # What was answered before too: nothing leaves.
    assert refused(site.handle(asked)) == "POLICY_REFUSED"
    with pytest.raises(PolicyError, match="no longer in force"):
        home.open(today=clock)
    assert home.ledger.read_bytes() == before
    clock.day = TODAY
    assert refused(site.handle(asked)) is None


def test_a_site_that_is_opened_after_the_last_day_makes_no_ledger(tmp_path: Path) -> None:
    check_closed(make_home(tmp_path / "north", expires=TODAY - timedelta(days=1)), "expires: .* no longer in force")


def test_a_policy_without_a_last_day_holds(home: Home) -> None:
    site = home.open(today=Clock(date.max))
    assert refused(site.handle(home.ask("one_way").encode())) is None


# --- for which study


def test_a_site_does_not_open_for_a_study_that_it_did_not_approve(home: Home) -> None:
    write_yaml(home.folder / "study.yaml", {**STUDY, "privacy": {**PRIVACY, "epsilon": 1.001}})
    check_closed(home, "approved")


def test_a_site_does_not_open_for_a_study_whose_columns_it_does_not_allow(tmp_path: Path) -> None:
    names = list(STUDY["columns"])
    for missing in names:
        allowed = [name for name in names if name != missing]
        home = make_home(tmp_path / missing, columns=allowed)
        check_closed(home, f"columns: the policy does not allow {missing}")
    check_closed(make_home(tmp_path / "none", columns=[]), "does not allow age, amount, colour, ill")
    # More may be allowed than a study uses.
    site = make_home(tmp_path / "north", columns=[*names, "other"]).open()
    assert site is not None


def test_channels_of_windows_are_columns_that_a_policy_allows_or_not(tmp_path: Path) -> None:
    names = [*WINDOWED["columns"], *WINDOWED["windows"]["channels"]]
    home = make_home(tmp_path / "south", SINGLE, study=WINDOWED, columns=[name for name in names if name != "drug"])
    check_closed(home, "columns: the policy does not allow drug")
    make_home(tmp_path / "north", SINGLE, study=WINDOWED, columns=names).open()


@pytest.mark.parametrize("which", ["records", "windows"])
def test_a_site_has_a_long_table_if_and_only_if_its_study_has_windows(tmp_path: Path, which: str) -> None:
    home = make_either(tmp_path / "north", which)
    path = home.folder / "site.yaml"
    site = yaml.safe_load(path.read_text())
    assert ("series" in site["source"]) == (which == "windows")
    if which == "windows":
        del site["source"]["series"]
    else:
        site["source"]["series"] = str(home.folder / "series.csv")
    write_yaml(path, site)
    check_closed(home, r"^source.series: ")


# --- how much


def bound_of(home: Home) -> float:
    return float(Reply.decode(home.open().handle(home.ask("describe").encode())).facts["bound"])


CAPS = [
    ({}, 1.0, 1e-5),
    ({"max_epsilon": 0.5}, 0.5, 1e-5),
    ({"max_delta": 1e-7}, 1.0, 1e-7),
    ({"max_epsilon": 0.3, "max_delta": 1e-6}, 0.3, 1e-6),
    ({"max_epsilon": 50, "max_delta": 0.5}, 1.0, 1e-5),
]


@pytest.mark.parametrize(("limits", "epsilon", "delta"), CAPS)
def test_a_site_narrows_the_budget_and_never_widens_it(
    tmp_path: Path, limits: dict[str, float], epsilon: float, delta: float
) -> None:
    bound = bound_of(make_home(tmp_path / "north", **limits))
    assert bound == pytest.approx(mu_of(epsilon=epsilon, delta=delta) ** 2, rel=1e-9)
    assert bound < mu_of(epsilon=epsilon, delta=delta) ** 2


@pytest.mark.parametrize(
    ("limits", "epsilon", "delta"), [*CAPS[:3], ({"max_epsilon": 0.8, "max_delta": 1e-6}, 0.8, 1e-6), CAPS[4]]
)
def test_a_site_narrows_the_budget_in_the_study_s_currency(
    tmp_path: Path, limits: dict[str, float], epsilon: float, delta: float
) -> None:
    home = make_home(tmp_path / "north", study=sampled(STUDY), **limits)
    accountant = home.study.accountant
    assert isinstance(accountant, RdpAccountant)
    # The order is the study's, whatever the site's own epsilon.
    bound = bound_of(home)
    assert bound == pytest.approx(accountant.bound(epsilon=epsilon, delta=delta), rel=1e-9)
    assert bound < accountant.bound(epsilon=epsilon, delta=delta)


def test_an_epsilon_that_no_noise_gives_keeps_a_site_closed(tmp_path: Path) -> None:
    check_closed(make_home(tmp_path / "gdp", max_epsilon=1e-9, max_delta=1e-9), "no practical noise level")
    # At the order that the study fixed even this is too little.
    check_closed(make_home(tmp_path / "rdp", study=sampled(STUDY), max_epsilon=0.1), "no practical noise level")
    check_closed(make_home(tmp_path / "all", total_epsilon=1e-9, total_delta=1e-9), "no practical noise level")


def test_no_more_is_spent_than_the_site_allows(tmp_path: Path) -> None:
    for number, study in enumerate((STUDY, sampled(STUDY))):
        home = make_home(tmp_path / str(number), study=study, max_epsilon=0.5)
        site = home.open()
        answers = [
            refused(site.handle(home.ask("one_way", name=str(one), options={"share": 0.4}).encode()))
            for one in range(3)
        ]
        assert answers == [None, None, "BUDGET_REFUSED"]
        spent = sum(home.study.accountant.spend(charge.event) for charge in home.charges)
        assert home.study.accountant.epsilon(spent=spent, delta=1e-5) <= 0.5


def variant(purpose: str) -> dict[str, Any]:
    """Another study of the same rows."""
    return {**STUDY, "purpose": purpose}


def test_all_studies_of_an_asset_together_spend_no_more_than_its_total(tmp_path: Path) -> None:
    folder, limits = tmp_path / "north", {"total_epsilon": 1.5, "total_delta": 1e-5}
    answers = {}
    for purpose in ("one", "two", "three"):
        home = make_home(folder, study=variant(purpose), **limits)
        site = home.open(SeededNoise(purpose.encode()))
        answers[purpose] = [
            refused(site.handle(home.ask("one_way", name=str(number), options={"share": 0.3}).encode()))
            for number in range(4)
        ]
    # Three shares of each study's own budget, then the total: mu of epsilon 1.5 squared is 2.06 times that of 1.
    assert answers == {
        "one": [None, None, None, "BUDGET_REFUSED"],
        "two": [None, None, None, "BUDGET_REFUSED"],
        "three": ["BUDGET_REFUSED"] * 4,
    }
    book = read_ledger(home.ledger)
    spent = sum(charge.event.spend for charges in book.charges.values() for charge in charges.values())
    assert spent <= mu_of(epsilon=1.5, delta=1e-5) ** 2


def test_the_dearer_account_of_a_study_counts_in_the_total(tmp_path: Path) -> None:
    folder, limits = tmp_path / "north", {"total_epsilon": 1.0, "total_delta": 1e-5}
    first = make_home(folder, study=variant("one"), **limits)
    site = first.open()
    assert refused(site.handle(first.ask("monitor", options={"share": 0.7}).encode())) is None
    # Units that train pay nothing more as long as no more than those held out.
    assert refused(site.handle(first.ask("one_way", options={"share": 0.7}).encode())) is None
    second = make_home(folder, study=variant("two"), **limits)
    for kind, share, rule in (
        ("one_way", 0.4, "BUDGET_REFUSED"),
        ("monitor", 0.4, "BUDGET_REFUSED"),
        ("monitor", 0.2, None),
    ):
        asked = second.ask(kind, name=f"{kind}-{share}", options={"share": share})
        assert refused(second.open().handle(asked.encode())) == rule


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"site": "south"}, "belongs to another"),
        ({"asset": "other"}, "belongs to another"),
        ({"identity": SigningKey.from_seed(b"k" * 32)}, "belongs to another"),
        ({"total_epsilon": 11}, "belongs to another"),
        ({"total_delta": 0.002}, "belongs to another"),
        ({"study": {**STUDY, "unit": {"name": "visit"}, "ignore": ["patient"]}}, "belongs to another"),
        ({"study": sampled(STUDY)}, "belongs to another"),
        ({"max_epsilon": 0.5}, "entered with another budget"),
        ({"max_delta": 1e-7}, "entered with another budget"),
    ],
)
def test_a_ledger_is_of_one_site_asset_unit_key_and_budget(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    home = make_home(tmp_path / "north")
    home.open()
    before = home.ledger.read_bytes()
    other = make_home(tmp_path / "north", **change)
    with pytest.raises(LedgerError, match=reason):
        other.open()
    assert home.ledger.read_bytes() == before
    make_home(tmp_path / "north").open()


# --- how exactly


def event_of(home: Home, kind: str, share: float) -> GaussianEvent:
    body = home.open().handle(home.ask(kind, name=f"{kind}-{share}", options={"share": share}).encode())
    reply = Reply.decode(body)
    assert reply.refused is None
    event = GaussianEvent.from_dict(dict(reply.facts["event"]))
    assert event in [charge.event for charge in home.charges]
    return event


def multiplier(event: GaussianEvent) -> float:
    """Noise over what one unit can change."""
    return float(event.noise_stddev / np.sqrt(event.squared_sensitivity))


@pytest.mark.parametrize("kind", MEASUREMENTS)
@pytest.mark.parametrize("make", [lambda study: study, sampled, lambda study: sampled(study, 0.05)])
def test_a_site_draws_no_less_noise_than_its_own_least(
    tmp_path: Path, kind: str, make: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    study = make(STUDY)
    free = event_of(make_home(tmp_path / "free", study=study), kind, 0.9)
    least = 2 * multiplier(free)
    home = make_home(tmp_path / "north", study=study, least_noise=least)
    held = event_of(home, kind, 0.9)
    assert least * (1 - 1e-12) <= multiplier(held) <= least * (1 + 1e-6)
    assert held.sampling == free.sampling == (study["critic"].get("sampling", 1) if kind == "critic" else 1)
    # Less noise costs more: what is not bought is not charged.
    assert home.study.accountant.spend(held) < home.study.accountant.spend(free) / 2


def test_a_least_noise_leaves_alone_whoever_asks_for_more(tmp_path: Path) -> None:
    for number, study in enumerate((STUDY, sampled(STUDY))):
        for kind in MEASUREMENTS:
            folder = tmp_path / str(number) / kind
            free = event_of(make_home(folder / "free", study=study), kind, 0.01)
            held = event_of(make_home(folder / "held", study=study, least_noise=multiplier(free) / 2), kind, 0.01)
            assert held == free


# --- who watches


def watched(folder: Path, witnesses: int | None) -> Home:
    return make_home(folder, peers=PEERS, witnesses=witnesses)


@pytest.mark.parametrize(("witnesses", "needed"), [(None, 2), (2, 2), (1, 1), (0, 0)])
def test_so_many_peers_must_confirm_as_the_policy_says_and_all_where_it_says_nothing(
    tmp_path: Path, witnesses: int | None, needed: int
) -> None:
    home = watched(tmp_path / "north", witnesses)
    site = home.open(forbidden())
    for number in range(needed):
        assert confirm(home, site, witnesses=list(PEERS)[:number]) == number
        before = home.ledger.read_bytes()
        for kind in MEASUREMENTS:
            assert refused(site.handle(home.ask(kind).encode())) == "UNCONFIRMED"
        assert home.ledger.read_bytes() == before
    site = home.open()
    assert confirm(home, site, witnesses=list(PEERS)[:needed]) == needed
    assert refused(site.handle(home.ask("one_way").encode())) is None


def test_a_site_without_peers_waits_for_nobody(home: Home) -> None:
    assert refused(home.open().handle(home.ask("one_way").encode())) is None


def test_each_release_needs_its_own_confirmation_and_what_was_answered_needs_none(tmp_path: Path) -> None:
    home = watched(tmp_path / "north", None)
    site = home.open()
    confirm(home, site)
    asked = home.ask("one_way").encode()
    first = site.handle(asked)
    assert refused(first) is None
    before = home.ledger.read_bytes()
    assert refused(site.handle(home.ask("tables").encode())) == "UNCONFIRMED"
    assert site.handle(asked) == first
    # A restart forgets who confirmed; the answer is the same.
    site = home.open(forbidden())
    assert site.handle(asked) == first
    assert refused(site.handle(home.ask("tables").encode())) == "UNCONFIRMED"
    assert home.ledger.read_bytes() == before
    site = home.open()
    assert confirm(home, site) == 2
    assert refused(site.handle(home.ask("tables").encode())) is None


def test_the_head_in_a_release_is_what_peers_confirm_before_the_next(tmp_path: Path) -> None:
    home = watched(tmp_path / "north", None)
    site = home.open()
    nonce = Reply.decode(site.handle(home.ask("describe").encode())).facts["nonce"]
    confirm(home, site)
    for kind in MEASUREMENTS:
        reply = Reply.decode(site.handle(home.ask(kind, options={"share": 0.1}).encode()))
        assert reply.refused is None
        given = attested(reply.facts, nonce=nonce)
        site.handle(home.ask("confirm", options={"attestations": given}).encode())
    assert home.charged == [f"run-1/{kind}" for kind in MEASUREMENTS]


def test_training_and_talk_of_ledgers_need_no_confirmation(tmp_path: Path) -> None:
    home = watched(tmp_path / "north", None)
    site = home.open(forbidden())
    for kind in ("describe", "witness", "confirm", "train"):
        assert refused(site.handle(home.ask(kind).encode())) is None


def test_a_site_whose_ledger_was_put_back_spends_nothing_once_a_peer_has_seen_more(tmp_path: Path) -> None:
    home = watched(tmp_path / "north", 1)
    site = home.open()
    confirm(home, site)
    old = home.ledger.read_bytes()
    reply = Reply.decode(site.handle(home.ask("one_way").encode()))
    seen = attested(reply.facts, nonce="")
    home.ledger.write_bytes(old)
    shutil.rmtree(home.folder / "state" / "replies")  # with its reply there, the site would not open
    site = home.open(forbidden())
    asked = home.ask("confirm", options={"attestations": seen[:1]})
    assert refused(site.handle(asked.encode())) == "LEDGER_INVALID"
    for kind in MEASUREMENTS:
        assert refused(site.handle(home.ask(kind, name="again").encode())) == "LEDGER_INVALID"
    assert home.ledger.read_bytes() == old


def test_refusals_for_want_of_confirmation_have_a_code_of_their_own(tmp_path: Path) -> None:
    home = watched(tmp_path / "north", None)
    assert refused(home.open().handle(home.ask("one_way").encode())) == ExitCode.UNCONFIRMED.name
