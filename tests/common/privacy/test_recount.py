"""The second accountant agrees with the first, and every way to claim too much is refused."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import LedgerError
from common.privacy import recount as module
from common.privacy.accountants import Accountant, GdpAccountant, RdpAccountant
from common.privacy.budget import epsilon_of, total
from common.privacy.events import GaussianEvent
from common.privacy.recount import check_certificate, recount

ACCOUNTS = ("train", "holdout")
DELTA = 1e-6

deltas = st.floats(-12, -1).map(lambda power: 10.0**power)
samplings = st.one_of(st.just(1.0), st.floats(-3, 0).map(lambda power: 10.0**power))
events = st.builds(
    lambda account, squared, multiplier, sampling: GaussianEvent(
        account=account,
        squared_sensitivity=squared,
        noise_stddev=multiplier * math.sqrt(squared),
        cells=4,
        scale=1,
        noise="csprng",
        sampling=sampling,
    ),
    st.sampled_from(ACCOUNTS),
    st.integers(1, 10**12),
    st.floats(0.3, 100),
    samplings,
)
accountants = st.one_of(st.just(GdpAccountant()), st.integers(2, 100).map(RdpAccountant))


def site_entry(accountant: Accountant, released: list[GaussianEvent], *, delta: float, bound: float) -> dict[str, Any]:
    spent = {
        account: total([accountant.spend(event) for event in released if event.account == account])
        for account in ACCOUNTS
    }
    return {
        "accountant": accountant.as_dict(),
        "epsilon": accountant.epsilon(spent=max(spent.values()), delta=delta),
        "delta": delta,
        "bound": bound,
        "events": [event.as_dict() for event in released],
    }


def certificate_of(sites: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """As it would be read from a file."""
    guarantee = {
        "epsilon": max(site["epsilon"] for site in sites.values()),
        "delta": max(site["delta"] for site in sites.values()),
    }
    return dict(json.loads(json.dumps({"guarantee": guarantee, "sites": sites})))


def plain_event(account: str, multiplier: float, **changes: Any) -> GaussianEvent:
    fields = {"account": account, "squared_sensitivity": 4, "noise_stddev": 2 * multiplier, "cells": 4, "scale": 1}
    return GaussianEvent(**{**fields, "noise": "csprng", **changes})  # type: ignore[arg-type]


def honest() -> dict[str, Any]:
    """Three sites: Gaussian DP, one Rényi order with sampling, and an entry from before there was a choice."""
    gaussian, renyi = GdpAccountant(), RdpAccountant(16)
    released = [plain_event("train", 8.0), plain_event("train", 9.5), plain_event("holdout", 6.0)]
    sampled = [plain_event("train", 3.0, sampling=0.1) for _ in range(20)] + [plain_event("holdout", 20.0)]
    north = site_entry(gaussian, released, delta=DELTA, bound=gaussian.bound(epsilon=1.0, delta=DELTA))
    south = site_entry(renyi, sampled, delta=DELTA, bound=renyi.bound(epsilon=3.0, delta=DELTA))
    west = {**copy.deepcopy(north), "budget_squared_mu": north["bound"]}
    del west["accountant"], west["bound"]
    return certificate_of({"north": north, "south": south, "west": west})


def exact_delta(mu: float, epsilon: float) -> mpmath.mpf:
    """Dong, Roth and Su 2022, Corollary 1, in 60 digits."""
    with mpmath.workdps(60):
        wide, noise = mpmath.mpf(epsilon), mpmath.mpf(mu)
        first = mpmath.ncdf(-wide / noise + noise / 2)
        return first - mpmath.exp(wide) * mpmath.ncdf(-wide / noise - noise / 2)


def exact_divergence(order: int, squared_mu: float, sampling: float) -> mpmath.mpf:
    """The closed sum in 50 digits, all its terms."""
    with mpmath.workdps(50):
        drawn, squared = mpmath.mpf(sampling), mpmath.mpf(squared_mu)
        weights = [mpmath.binomial(order, i) * drawn**i * (1 - drawn) ** (order - i) for i in range(order + 1)]
        terms = [weight * mpmath.exp((i * i - i) * squared / 2) for i, weight in enumerate(weights)]
        return mpmath.log(mpmath.fsum(terms)) / (order - 1)


# --- Gaussian DP


@settings(max_examples=150, deadline=None)
@given(st.floats(-3, 2.2).map(lambda power: 10.0**power), deltas)
def test_the_integrated_epsilon_is_good_to_one_part_in_ten_million(mu: float, delta: float) -> None:
    epsilon = module._gaussian_epsilon(mu, delta)
    if epsilon == 0:
        assert exact_delta(mu, 0) <= delta * (1 + 1e-12)
        return
    assert exact_delta(mu, epsilon * (1 + 1e-7) + 1e-12) <= delta
    if epsilon > 1e-12:
        assert exact_delta(mu, max(0.0, epsilon * (1 - 1e-7) - 1e-12)) >= delta


@pytest.mark.parametrize("mu", [1e-4, 0.01, 0.267, 1.0, 3.0, 20.0, 150.0, 450.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.5])
def test_the_integral_is_the_hockey_stick_divergence(mu: float, share: float) -> None:
    epsilon = share * (mu * mu / 2 + 3 * mu)
    assert module._hockey_stick(mu, epsilon) == pytest.approx(float(exact_delta(mu, epsilon)), rel=1e-11)


def test_noise_next_to_none_is_no_guarantee() -> None:
    assert module._gaussian_epsilon(1e300, DELTA) == math.inf
    assert module._gaussian_epsilon(1e5, DELTA) > 1e9
    assert module._gaussian_epsilon(1e-300, DELTA) == 0.0
    assert module._gaussian_epsilon(1e-300, 1e-310) > 0


# --- Rényi DP


@pytest.mark.parametrize("order", [2, 3, 16, 100, 300])
@pytest.mark.parametrize("sampling", [1e-12, 1e-4, 0.1, 0.9, 1 - 2**-53])
@pytest.mark.parametrize("multiplier", [0.05, 0.7, 5.0, 300.0])
def test_the_divergence_is_good_however_small(order: int, sampling: float, multiplier: float) -> None:
    squared_mu = 1 / multiplier**2
    exact = float(exact_divergence(order, squared_mu, sampling))
    assert module._divergence(order, squared_mu, sampling) == pytest.approx(exact, rel=1e-10, abs=0)


def test_a_divergence_beyond_floats_is_infinite_and_none_is_none() -> None:
    assert module._divergence(16, 1e307, 0.5) == math.inf
    assert module._divergence(16, math.inf, 0.5) == math.inf
    assert module._divergence(16, 0.0, 0.5) == 0.0
    assert module._divergence(16, 5e-324, 0.5) >= 0.0
    assert module._divergence(16, 0.25, 1.0) == 2.0


# --- against the first accountant


@settings(max_examples=80, deadline=None)
@given(accountants, st.lists(events, max_size=8), deltas)
def test_both_accountants_say_the_same(accountant: Accountant, released: list[GaussianEvent], delta: float) -> None:
    site = site_entry(accountant, released, delta=delta, bound=1e12)
    certificate = certificate_of({"north": site})
    # Up to delta squared Renyi's epsilon is 0; just there the first accountant's rounding up decides.
    losses = module._losses(certificate["sites"]["north"]).values()
    assume(not any(0.99 < loss / delta**2 < 1.01 for loss in losses))
    assert recount(certificate)["north"] == pytest.approx(site["epsilon"], rel=1e-6, abs=1e-9)
    check_certificate(certificate)


@settings(max_examples=80, deadline=None)
@given(accountants, st.lists(events, min_size=1, max_size=8), deltas, st.floats(3e-6, 0.5))
def test_a_claim_lower_by_three_parts_in_a_million_is_refused(
    accountant: Accountant, released: list[GaussianEvent], delta: float, less: float
) -> None:
    certificate = certificate_of({"north": site_entry(accountant, released, delta=delta, bound=1e12)})
    claimed = certificate["sites"]["north"]["epsilon"]
    assume(claimed > 1e-3)
    for place in (certificate["sites"]["north"], certificate["guarantee"]):
        place["epsilon"] = claimed * (1 - less)
    with pytest.raises(LedgerError, match="epsilon is claimed"):
        check_certificate(certificate)


def test_closed_forms() -> None:
    certificate = honest()
    found = recount(certificate)
    holdout = 1 / 6.0  # mu; the two train events are mu = 0.16 together
    assert found["north"] == found["west"] == pytest.approx(epsilon_of(mu=holdout, delta=DELTA), rel=1e-7)
    divergence = 20 * exact_divergence(16, 1 / 9, 0.1)
    conversion = math.log1p(-1 / 16) - math.log(16 * DELTA) / 15
    assert found["south"] == pytest.approx(float(divergence) + conversion, rel=1e-9)


def test_a_loss_that_delta_pays_for_is_epsilon_zero() -> None:
    # Divergence 0.3 at order 3: Proposition 12 gives less than nothing at delta 0.5.
    event = plain_event("train", math.sqrt(5))
    certificate = certificate_of({"north": site_entry(RdpAccountant(3), [event], delta=0.5, bound=1.0)})
    assert recount(certificate) == {"north": 0.0}


def test_spends_beyond_floats_are_no_guarantee() -> None:
    certificate = honest()
    for event in certificate["sites"]["north"]["events"]:
        event["noise_stddev"] = 2e-154
    assert recount(certificate)["north"] == math.inf


def test_accounts_hold_different_units_and_do_not_add_up() -> None:
    certificate = honest()
    alone = copy.deepcopy(certificate)
    alone["sites"]["north"]["events"] = [
        event for event in alone["sites"]["north"]["events"] if event["account"] == "holdout"
    ]
    assert recount(alone)["north"] == recount(certificate)["north"]


def test_a_site_without_events_has_lost_nothing() -> None:
    for accountant in (GdpAccountant(), RdpAccountant(16)):
        certificate = certificate_of({"north": site_entry(accountant, [], delta=DELTA, bound=0.1)})
        assert recount(certificate) == {"north": 0.0}
        check_certificate(certificate)


def test_what_the_sampler_took_of_delta_is_not_there_for_the_releases() -> None:
    certificate = honest()
    for accountant, name in ((GdpAccountant(), "north"), (RdpAccountant(16), "south")):
        site = certificate["sites"][name]
        site["sampler_delta"] = 0.75 * DELTA
        spent = max(
            total(
                [
                    accountant.spend(GaussianEvent.from_dict(event))
                    for event in site["events"]
                    if event["account"] == account
                ]
            )
            for account in ACCOUNTS
        )
        assert recount(certificate)[name] == pytest.approx(accountant.epsilon(spent=spent, delta=DELTA / 4), rel=1e-6)
    with pytest.raises(LedgerError, match="epsilon is claimed"):
        check_certificate(certificate)


# --- what is refused


def test_an_honest_certificate_passes() -> None:
    check_certificate(honest())


def test_a_certificate_without_a_guarantee_may_hold_test_noise() -> None:
    certificate = honest()
    certificate["guarantee"] = None
    certificate["sites"]["north"]["events"][0]["noise"] = "test-seed"
    check_certificate(certificate)


def test_a_higher_claim_than_needed_passes() -> None:
    certificate = honest()
    for place in (*certificate["sites"].values(), certificate["guarantee"]):
        place["epsilon"] = 5.0
    check_certificate(certificate)


def event_of(certificate: dict[str, Any], site: str = "north", number: int = 0) -> dict[str, Any]:
    event: dict[str, Any] = certificate["sites"][site]["events"][number]
    return event


def lower_all_claims(certificate: dict[str, Any]) -> None:
    for place in (*certificate["sites"].values(), certificate["guarantee"]):
        place["epsilon"] *= 0.999


def many_more_events(certificate: dict[str, Any]) -> None:
    certificate["sites"]["north"]["events"] *= 10


TAMPERINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "claims lowered": (lower_all_claims, "epsilon is claimed"),
    "one claim lowered": (lambda c: c["sites"]["west"].update(epsilon=0.5), "west: epsilon is claimed"),
    "claim of a site at one order lowered": (lambda c: c["sites"]["south"].update(epsilon=0.5), "south: epsilon"),
    "claim is not a number": (lambda c: c["sites"]["north"].update(epsilon=math.nan), "epsilon: expected"),
    "claim is infinite": (lambda c: c["sites"]["north"].update(epsilon=math.inf), "epsilon: expected"),
    "claim is text": (lambda c: c["sites"]["north"].update(epsilon="1.0"), "epsilon: expected"),
    "claim is true": (lambda c: c["sites"]["north"].update(epsilon=True), "epsilon: expected"),
    "claim is missing": (lambda c: c["sites"]["north"].pop("epsilon"), "epsilon: expected"),
    "less noise": (lambda c: event_of(c, number=2).update(noise_stddev=11.9), "epsilon is claimed"),
    "more sensitivity": (lambda c: event_of(c, number=2).update(squared_sensitivity=5), "epsilon is claimed"),
    "more sampling": (lambda c: event_of(c, "south").update(sampling=0.2), "epsilon is claimed"),
    "sampling left out": (lambda c: event_of(c, "south").pop("sampling"), "epsilon is claimed"),
    "an event more": (lambda c: c["sites"]["north"]["events"].append(event_of(c, number=2)), "epsilon is claimed"),
    "an event moved to the other account": (lambda c: event_of(c).update(account="holdout"), "epsilon is claimed"),
    "a lower order": (lambda c: c["sites"]["south"]["accountant"].update(order=12), "epsilon is claimed"),
    "another accountant": (lambda c: c["sites"]["south"].update(accountant={"kind": "gdp"}), "epsilon is claimed"),
    "no accountant": (lambda c: c["sites"]["south"].pop("accountant"), "epsilon is claimed"),
    "an accountant that is not known": (
        lambda c: c["sites"]["north"].update(accountant={"kind": "zcdp"}),
        "accountant",
    ),
    "an accountant with more to it": (
        lambda c: c["sites"]["south"]["accountant"].update(orders=[2, 3]),
        "accountant",
    ),
    "order 1": (lambda c: c["sites"]["south"]["accountant"].update(order=1), "accountant"),
    "order 1025": (lambda c: c["sites"]["south"]["accountant"].update(order=1025), "accountant"),
    "order true": (lambda c: c["sites"]["south"]["accountant"].update(order=True), "accountant"),
    "order 16.0": (lambda c: c["sites"]["south"]["accountant"].update(order=16.0), "accountant"),
    "no order": (lambda c: c["sites"]["south"]["accountant"].pop("order"), "accountant"),
    "smaller delta": (lambda c: c["sites"]["north"].update(delta=1e-7), "epsilon is claimed"),
    "larger delta": (lambda c: c["sites"]["north"].update(delta=1e-5), "delta is smaller"),
    "smaller delta of the guarantee": (lambda c: c["guarantee"].update(delta=1e-7), "delta is smaller"),
    "delta of one": (lambda c: c["sites"]["north"].update(delta=1.0), "delta: expected"),
    "delta of nothing": (lambda c: c["sites"]["north"].update(delta=0.0), "delta: expected"),
    "sampler took all of delta": (lambda c: c["sites"]["north"].update(sampler_delta=DELTA), "delta: expected"),
    "sampler gives delta": (lambda c: c["sites"]["north"].update(sampler_delta=-DELTA), "sampler_delta: expected"),
    "sampler delta is no number": (lambda c: c["sites"]["north"].update(sampler_delta=None), "sampler_delta: expected"),
    "bound lowered": (lambda c: c["sites"]["north"].update(bound=0.0277), "holdout spent more than the bound"),
    "bound lowered at one order": (lambda c: c["sites"]["south"].update(bound=0.2), "train spent more than the bound"),
    "old bound lowered": (lambda c: c["sites"]["west"].update(budget_squared_mu=0.0277), "west: the account holdout"),
    "new bound beside a large old one": (
        lambda c: c["sites"]["west"].update(bound=0.0277),
        "west: the account holdout",
    ),
    "bound is not a number": (lambda c: c["sites"]["north"].update(bound=math.nan), "bound: expected"),
    "bound is missing": (lambda c: c["sites"]["north"].pop("bound"), "budget_squared_mu: expected"),
    "another account": (lambda c: event_of(c, number=2).update(account="public"), "account: expected"),
    "no account": (lambda c: event_of(c, number=2).pop("account"), "account: expected"),
    "another kind of event": (lambda c: event_of(c).update(type="laplace"), "not a gaussian event"),
    "no kind of event": (lambda c: event_of(c).pop("type"), "not a gaussian event"),
    "a field that is not known": (lambda c: event_of(c).update(repeats=1), "not a gaussian event"),
    "an event that is text": (lambda c: c["sites"]["north"]["events"].append("gaussian"), "not a gaussian event"),
    "no noise": (lambda c: event_of(c).update(noise_stddev=0.0), "noise_stddev or sampling"),
    "negative noise": (lambda c: event_of(c).update(noise_stddev=-16.0), "noise_stddev: expected"),
    "infinite noise": (lambda c: event_of(c).update(noise_stddev=math.inf), "noise_stddev: expected"),
    "noise of no number": (lambda c: event_of(c).update(noise_stddev=math.nan), "noise_stddev: expected"),
    "noise beyond floats": (lambda c: event_of(c).update(noise_stddev=10**400), "noise_stddev: expected"),
    "noise next to none": (lambda c: event_of(c).update(noise_stddev=1e-300), "epsilon is claimed"),
    "noise next to none at one order": (
        lambda c: event_of(c, "south").update(noise_stddev=1e-300),
        "epsilon is claimed",
    ),
    "no sensitivity": (lambda c: event_of(c).update(squared_sensitivity=0), "squared_sensitivity: expected"),
    "negative sensitivity": (lambda c: event_of(c).update(squared_sensitivity=-4), "squared_sensitivity: expected"),
    "sensitivity of true": (lambda c: event_of(c).update(squared_sensitivity=True), "squared_sensitivity: expected"),
    "sensitivity not whole": (lambda c: event_of(c).update(squared_sensitivity=4.5), "squared_sensitivity: expected"),
    "sensitivity beyond floats": (lambda c: event_of(c).update(squared_sensitivity=10**400), "squared_sensitivity"),
    "sampling of nothing": (lambda c: event_of(c, "south").update(sampling=0.0), "noise_stddev or sampling"),
    "sampling above one": (lambda c: event_of(c, "south").update(sampling=1.5), "noise_stddev or sampling"),
    "sampling of no number": (lambda c: event_of(c, "south").update(sampling=math.nan), "sampling: expected"),
    "test noise": (lambda c: event_of(c, number=1).update(noise="test-seed"), "cryptographic"),
    "noise from nowhere": (lambda c: event_of(c).pop("noise"), "noise: expected"),
    "guarantee lowered": (lambda c: c["guarantee"].update(epsilon=c["guarantee"]["epsilon"] * (1 - 1e-12)), "largest"),
    "guarantee raised": (lambda c: c["guarantee"].update(epsilon=9.0), "largest"),
    "guarantee of another site": (lambda c: c["guarantee"].update(epsilon=c["sites"]["north"]["epsilon"]), "largest"),
    "guarantee is no number": (lambda c: c["guarantee"].update(epsilon=math.nan), "epsilon: expected"),
    "guarantee is text": (lambda c: c.update(guarantee="none"), "epsilon: expected"),
    "guarantee is missing": (lambda c: c.pop("guarantee"), "lacks guarantee"),
    "events are missing": (lambda c: c["sites"]["north"].pop("events"), "events: expected"),
    "events are a mapping": (lambda c: c["sites"]["north"].update(events={}), "events: expected"),
    "no sites": (lambda c: c["sites"].clear(), "sites: expected"),
    "sites are missing": (lambda c: c.pop("sites"), "sites: expected"),
    "a site is text": (lambda c: c["sites"].update(north="site"), "sites: expected"),
}


@pytest.mark.parametrize("name", sorted(TAMPERINGS))
def test_a_certificate_that_was_tampered_with_is_refused(name: str) -> None:
    tamper, message = TAMPERINGS[name]
    certificate = honest()
    tamper(certificate)
    with pytest.raises(LedgerError, match=message):
        check_certificate(certificate)


@pytest.mark.parametrize("certificate", [None, [], "certificate", 1])
def test_what_is_no_certificate_is_refused(certificate: Any) -> None:
    for read in (recount, check_certificate):
        with pytest.raises(LedgerError, match="certificate"):
            read(certificate)


def test_events_over_the_bound_are_refused_though_epsilon_is_claimed_in_full() -> None:
    certificate = honest()
    many_more_events(certificate)
    for place in (*certificate["sites"].values(), certificate["guarantee"]):
        place["epsilon"] = 100.0
    with pytest.raises(LedgerError, match="north: the account train spent more than the bound"):
        check_certificate(certificate)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([GdpAccountant(), RdpAccountant(16)]), st.floats(1.0, 20), samplings)
def test_a_budget_spent_to_its_end_passes(accountant: Accountant, epsilon: float, sampling: float) -> None:
    bound = accountant.bound(epsilon=epsilon, delta=DELTA)
    stddev = accountant.noise_stddev(squared_sensitivity=4, spend=bound, sampling=sampling)
    event = plain_event("train", 1.0, noise_stddev=stddev, sampling=sampling)
    certificate = certificate_of({"north": site_entry(accountant, [event], delta=DELTA, bound=bound)})
    check_certificate(certificate)
    if accountant != GdpAccountant() or sampling == 1:
        assert recount(certificate)["north"] == pytest.approx(epsilon, rel=1e-6)
    certificate["sites"]["north"]["bound"] = bound * (1 - 1e-7)
    with pytest.raises(LedgerError, match="more than the bound"):
        check_certificate(certificate)
