"""What a site signs of its spending: nothing in it can be changed, and nothing but its own form is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import ProtocolError
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Asset, Charge, Head, Ledger
from common.privacy.signatures import SigningKey
from common.privacy.spending import MAX_EVENTS, Spending

KEY = SigningKey.from_seed(bytes(32))
EVENT = GaussianEvent(
    account="train", squared_sensitivity=4, noise_stddev=80.0, cells=6, scale=2, noise="csprng", sampling=0.5
)
SAID = Spending("north", "0" * 64, Head("a" * 64, 7, "b" * 64), 0.07, (EVENT, replace(EVENT, sampling=1.0))).signed(KEY)


def test_what_was_signed_is_read_back_as_it_was() -> None:
    assert Spending.from_dict(SAID.as_dict()) == SAID
    assert SAID.is_by(KEY.public)
    assert not SAID.is_by(SigningKey.from_seed(b"o" * 32).public)


@pytest.mark.parametrize(
    "fields",
    [
        {"site": "south"},
        {"study": "1" * 64},
        {"head": Head("a" * 64, 8, "b" * 64)},
        {"bound": 0.08},
        {"events": SAID.events[:1]},
        {"events": SAID.events[::-1]},
        {"events": (*SAID.events, EVENT)},
        {"events": ()},
    ],
    ids=str,
)
def test_nothing_can_be_changed(fields: dict[str, Any]) -> None:
    assert not replace(SAID, **fields).is_by(KEY.public)


BAD: dict[str, Any] = {
    "nothing": None,
    "a text": "spending",
    "a list": [1],
    "a field less": {name: value for name, value in SAID.as_dict().items() if name != "bound"},
    "a field more": {**SAID.as_dict(), "weight": 1},
    "a bound that is whole": {**SAID.as_dict(), "bound": 1},
    "a bound that is text": {**SAID.as_dict(), "bound": "1"},
    "a sequence that is text": {**SAID.as_dict(), "sequence": "7"},
    "a sequence that is true": {**SAID.as_dict(), "sequence": True},
    "a site that is a number": {**SAID.as_dict(), "site": 7},
    "a long hash": {**SAID.as_dict(), "hash": "b" * 257},
    "no list of events": {**SAID.as_dict(), "events": "none"},
    "an event that is none": {**SAID.as_dict(), "events": [{"type": "laplace"}]},
    "an event that is a number": {**SAID.as_dict(), "events": [7]},
    "too many events": {**SAID.as_dict(), "events": [EVENT.as_dict()] * (MAX_EVENTS + 1)},
}


@pytest.mark.parametrize("how", BAD)
def test_what_is_not_of_its_form_is_refused(how: str) -> None:
    with pytest.raises(ProtocolError, match=r"^spending: not of its form$"):
        Spending.from_dict(BAD[how])


def test_a_ledger_tells_every_charge_of_its_study_and_none_of_another(tmp_path: Path) -> None:
    asset = Asset("north", "stays", "patient", GdpAccountant(), 1.0)
    ledgers = [
        Ledger(tmp_path / "ledger.jsonl", asset=asset, study=study, bound=0.5, key=KEY) for study in ("one", "two")
    ]
    assert ledgers[0].spent() == (ledgers[0].head(), ())
    events = [replace(EVENT, cells=cells) for cells in (5, 6, 7)]
    ledgers[0].authorise(Charge("run-1/a", "0" * 64, events[0]))
    ledgers[1].authorise(Charge("run-1/a", "0" * 64, events[1]))
    ledgers[0].authorise(Charge("run-2/a", "0" * 64, events[2]))  # whose reply nobody gets
    assert ledgers[0].spent() == (ledgers[0].head(), (events[0], events[2]))
    assert ledgers[1].spent() == (ledgers[1].head(), (events[1],))
