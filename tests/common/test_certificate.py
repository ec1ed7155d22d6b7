"""The certificate of a run: what it claims, and that it is never made with a claim that its events do not bear out."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from common.certificate import SiteRecord, make_certificate
from common.errors import LedgerError
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Head
from common.privacy.noise import DRAW_ERROR
from common.privacy.signatures import SigningKey
from common.privacy.witness import state_head
from common.study import Study, parse_study

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


def certify(study: Study, **sites: Sequence[GaussianEvent]) -> dict[str, Any]:
    """A certificate of sites that released these events."""
    bound = study.accountant.bound(epsilon=EPSILON, delta=DELTA)
    records = {
        site: SiteRecord(events, bound, KEY.public, state_head(site, Head("0" * 64, 1, "1" * 64), KEY), ())
        for site, events in sites.items()
    }
    return make_certificate(study, run="run-1", sites=records, files={})


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
