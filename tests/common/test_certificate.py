"""The certificate of a run: what it claims, and that it is never made with a claim that its events do not bear out."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from common.certificate import SIGNING_PURPOSE, Signer, SiteRecord, make_certificate, signed_body
from common.errors import LedgerError
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Head
from common.privacy.noise import DRAW_ERROR
from common.privacy.signatures import SigningKey, is_signed
from common.privacy.spending import Spending
from common.privacy.witness import state_head
from common.study import Study, parse_study

HEAD = Head("0" * 64, 1, "1" * 64)
KEY = SigningKey.from_seed(bytes(32))
EPSILON, DELTA = 1.0, 1e-5


@pytest.fixture(scope="module")
def study() -> Study:
    columns = {
        "colour": {"type": "categorical", "categories": ["red", "green"]},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    }
    fields = {
        "schema": "privshare.study/1",
        "name": "toy",
        "unit": {"name": "patient", "key": "patient"},
        "label": {"column": "ill", "positive": "yes"},
        "columns": columns,
        "privacy": {"epsilon": EPSILON, "delta": DELTA, "holdout": 0.3},
    }
    return parse_study(fields, source="test")


def event(study: Study, share: float, **changes: Any) -> GaussianEvent:
    """A release that costs a share of the study's budget."""
    bound = study.accountant.bound(epsilon=EPSILON, delta=DELTA)
    stddev = study.accountant.noise_stddev(squared_sensitivity=4, spend=share * bound, sampling=1.0)
    fields = {"account": "train", "squared_sensitivity": 4, "noise_stddev": stddev, "cells": 6, "scale": 2}
    return GaussianEvent(**{**fields, "noise": "csprng", **changes})  # type: ignore[arg-type]


def certify(
    study: Study, received: Sequence[GaussianEvent] | None = None, **sites: Sequence[GaussianEvent]
) -> dict[str, Any]:
    """A certificate of sites that released these events."""
    bound = study.accountant.bound(epsilon=EPSILON, delta=DELTA)
    records = {
        site: SiteRecord(
            events if received is None else received,
            Spending(site, study.digest(), HEAD, bound, tuple(events)).signed(KEY),
            KEY.public,
            state_head(site, HEAD, KEY),
            (),
        )
        for site, events in sites.items()
    }
    return make_certificate(study, run="run-1", sites=records, files={}, signer=Signer(KEY, "coordinator"))


def test_the_dearest_account_of_the_dearest_site_is_what_is_claimed(study: Study) -> None:
    made = certify(study, north=[event(study, 0.1), event(study, 0.6, account="holdout")], south=[event(study, 0.3)])
    north, south = made["sites"]["north"], made["sites"]["south"]
    bound = study.accountant.bound(epsilon=EPSILON, delta=DELTA)
    assert north["spent"] == {"train": pytest.approx(0.1 * bound), "holdout": pytest.approx(0.6 * bound)}
    assert north["epsilon"] == pytest.approx(study.accountant.epsilon(spent=0.6 * bound, delta=DELTA))
    assert north["epsilon"] >= study.accountant.epsilon(spent=0.6 * bound, delta=DELTA) * (1 - 1e-12)
    assert south["epsilon"] < north["epsilon"] == made["guarantee"]["epsilon"] < EPSILON
    assert made["guarantee"]["delta"] == DELTA
    assert (made["unit"], made["void_because"]) == ("patient", None)


def test_a_whole_budget_stands_for_no_more_than_the_study_s_epsilon(study: Study) -> None:
    made = certify(study, north=[event(study, 0.25)] * 4)
    assert 0.999 * EPSILON < made["guarantee"]["epsilon"] <= EPSILON


def test_every_cell_that_was_drawn_is_taken_off_delta(study: Study) -> None:
    made = certify(study, north=[event(study, 0.1, cells=6), event(study, 0.1, cells=10**9)])
    assert made["sites"]["north"]["sampler_delta"] == (6 + 10**9) * DRAW_ERROR


def test_noise_that_can_be_repeated_voids_the_guarantee(study: Study) -> None:
    made = certify(study, north=[event(study, 0.1)], south=[event(study, 0.1), event(study, 0.1, noise="test-seed")])
    assert made["guarantee"] is None
    assert "seed" in made["void_because"]


def test_a_site_that_spent_more_than_its_bound_gets_no_certificate(study: Study) -> None:
    with pytest.raises(LedgerError, match="spent more than the bound"):
        certify(study, north=[event(study, 0.5), event(study, 0.6)])


def test_a_fault_of_the_first_accountant_is_found_by_the_second(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GdpAccountant.epsilon
    monkeypatch.setattr(GdpAccountant, "epsilon", lambda self, **given: right(self, **given) * (1 - 1e-5))
    with pytest.raises(LedgerError, match="is claimed to be"):
        certify(study, north=[event(study, 0.5)])
    monkeypatch.setattr(GdpAccountant, "epsilon", lambda self, **given: math.nextafter(right(self, **given), math.inf))
    assert certify(study, north=[event(study, 0.5)])["guarantee"] is not None


def test_what_a_site_was_charged_counts_whether_or_not_it_came(study: Study) -> None:
    made = certify(study, [event(study, 0.1)], north=[event(study, 0.1), event(study, 0.2)])
    assert len(made["sites"]["north"]["events"]) == 2
    assert made["guarantee"] == certify(study, north=[event(study, 0.1), event(study, 0.2)])["guarantee"]


@pytest.mark.parametrize("received", [(0.1, 0.3), (0.1, 0.1), (0.1, 0.2, 0.2)], ids=str)
def test_what_came_and_was_not_charged_stops_the_certificate(study: Study, received: tuple[float, ...]) -> None:
    came = [event(study, share) for share in received]
    with pytest.raises(LedgerError, match="north: released what it does not say that it has spent"):
        certify(study, came, north=[event(study, 0.1), event(study, 0.2)])


def test_the_signature_covers_everything_but_itself(study: Study) -> None:
    made = certify(study, north=[event(study, 0.1)])
    signature = made["signature"]

    def holds(certificate: dict[str, Any]) -> bool:
        return is_signed(
            signed_body(certificate), signature["signature"], purpose=SIGNING_PURPOSE, public=signature["key"]
        )

    assert holds(made)
    for name in set(made) - {"signature"}:
        assert not holds({**made, name: "other"}), name
    assert not holds({**made, "signature": {**signature, "signer": "simulation"}})
