"""The second accountant: what a certificate claims, computed once more from its JSON alone.

It shares no code and no library with the first: standard library only, other formulae where there are any. A fault
would have to be made twice, in two ways, to be believed. It rounds to neither side (`check_certificate` has tolerances
for that) and refuses what it does not understand.

Unit of privacy: one unit with all its records. Relation: add or remove one unit.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from common.errors import LedgerError

_ACCOUNTS = ("train", "holdout")
# In both a site's events are all the noise that its claim counts on. Where sites shared it, an event would say less.
_TRUSTS = ("local", "local, sums masked")
_EVENT_FIELDS = {"type", "account", "squared_sensitivity", "noise_stddev", "cells", "scale", "noise", "sampling"}
_ORDERS = (2, 1024)

# A claim may be lower by so much, relative and absolute: what the two accountants may differ in.
_EPSILON_TOLERANCE, _EPSILON_DUST = 1e-6, 1e-9
# Spends may pass their bound by so much of it: sums here are floats.
_BOUND_TOLERANCE = 1e-9

# Beyond this epsilon is past 10^11: no guarantee.
_HOPELESS_MU = 1e6


def recount(certificate: Mapping[str, Any]) -> dict[str, float]:
    """Epsilon by site, from the events of each site and its delta.

    A unit is in one account of a site, so a site's epsilon is that of its dearer account. Good to 1e-7 relative, or to
    1e-12 where epsilon is smaller than that allows; inf where the noise is next to none.

    Raises:
        LedgerError: something in the certificate is not understood.
    """
    return {name: _epsilon_of(site, max(_losses(site).values())) for name, site in _sites(certificate).items()}


def recount_spends(certificate: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What each account of each site spent: squared mu, or Rényi divergence where the site counts in those.

    Raises:
        LedgerError: something in the certificate is not understood.
    """
    return {name: _losses(site) for name, site in _sites(certificate).items()}


def recount_bounds(certificate: Mapping[str, Any]) -> dict[str, float]:
    """The epsilon by site that its bound stands for, if all of it were spent.

    Raises:
        LedgerError: something in the certificate is not understood.
    """
    return {name: _epsilon_of(site, _number(site, "bound")) for name, site in _sites(certificate).items()}


def check_certificate(certificate: Mapping[str, Any]) -> None:
    """Refuse a certificate that claims more than its own events bear out.

    Guarantees, when it returns: each site's epsilon is at least the recounted one; no account of a site spent more than
    the site's bound; where a guarantee is stated, its epsilon is the largest of the sites', its delta no smaller than
    theirs, and all noise is stated to be cryptographic.
    Not checked: that the events are all there were, signatures, and whether the bound is what the study allows.

    Raises:
        LedgerError: it does, or something in it is not understood.
    """
    recounted, sites = recount(certificate), _sites(certificate)
    for name, site in sites.items():
        claimed = _number(site, "epsilon")
        if claimed < recounted[name] * (1 - _EPSILON_TOLERANCE) - _EPSILON_DUST:
            raise LedgerError(
                f"site {name}: epsilon is claimed to be {claimed:.9g}, its events say {recounted[name]:.9g}"
            )
        bound = _number(site, "bound" if "bound" in site else "budget_squared_mu")
        for account, loss in _losses(site).items():
            if loss > bound * (1 + _BOUND_TOLERANCE):
                raise LedgerError(f"site {name}: the account {account} spent more than the bound")
    if "guarantee" not in certificate:
        raise LedgerError("certificate: lacks guarantee")
    guarantee = certificate["guarantee"]
    if guarantee is None:
        return
    if any(event["noise"] != "csprng" for site in sites.values() for event in _events(site)):
        raise LedgerError("guarantee: is stated, but some noise is not from a cryptographic source")
    if _number(guarantee, "epsilon") != max(_number(site, "epsilon") for site in sites.values()):
        raise LedgerError("guarantee: its epsilon is not the largest of the sites'")
    if _number(guarantee, "delta") < max(_number(site, "delta") for site in sites.values()):
        raise LedgerError("guarantee: its delta is smaller than a site's")


def _epsilon_of(site: Mapping[str, Any], loss: float) -> float:
    order, delta = _order(site), _delta(site)
    return _gaussian_epsilon(math.sqrt(loss), delta) if order is None else _epsilon(loss, order, delta)


def _losses(site: Mapping[str, Any]) -> dict[str, float]:
    """By account, the sum of squared mu, or of Rényi divergences where the site counts in those."""
    order = _order(site)
    losses: dict[str, list[float]] = {account: [] for account in _ACCOUNTS}
    for event in _events(site):
        stddev, sampling = _number(event, "noise_stddev"), _number({"sampling": 1.0, **event}, "sampling")
        if stddev == 0 or not 0 < sampling <= 1:
            raise LedgerError("event: noise_stddev or sampling is out of range")
        squared_mu = _number(event, "squared_sensitivity") / stddev / stddev
        losses[event["account"]].append(squared_mu if order is None else _divergence(order, squared_mu, sampling))
    return {account: sum(spends) for account, spends in losses.items()}


# --- Gaussian DP


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at which N(mu, 1) and N(0, 1) are (epsilon, delta)-indistinguishable, by bisection."""
    if mu > _HOPELESS_MU:
        return math.inf
    if mu == 0 or _hockey_stick(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, mu
    while _hockey_stick(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-13 * high + 1e-16:
        middle = (low + high) / 2
        low, high = (middle, high) if _hockey_stick(mu, middle) > delta else (low, middle)
    return high


def _hockey_stick(mu: float, epsilon: float) -> float:
    """Integral of max(0, p - e^epsilon q) for p the density of N(mu, 1), q of N(0, 1); by Gauss-Legendre panels.

    p > e^epsilon q from x = epsilon/mu + mu/2 on. At a distance y beyond that point the integrand is
    p (1 - e^(-mu y)), without cancellation, and p is the normal density at y + epsilon/mu - mu/2.
    """
    shift = epsilon / mu - mu / 2
    # What lies ten deviations and more below the bulk is left out.
    skipped = max(0.0, -shift - 10)
    at = max(shift, -10.0)
    end = max(0.0, -at) + 12
    done, parts = 0.0, []
    # Narrow where e^(-mu y) and the density bend, growing from there.
    width = 0.25 / (1 + mu + max(0.0, at))
    while done < end:
        for node, weight in _GAUSS_LEGENDRE:
            y = done + width * node
            density = math.exp(-(at + y) * (at + y) / 2)
            parts.append(weight * width * density * -math.expm1(-mu * (skipped + y)))
        done, width = done + width, min(0.25, 1.1 * width)
    return math.fsum(parts) / math.sqrt(2 * math.pi)


def _gauss_legendre() -> list[tuple[float, float]]:
    """Five nodes and weights on (0, 1), in closed form."""
    inner, outer = (math.sqrt(5 + sign * 2 * math.sqrt(10 / 7)) / 3 for sign in (-1, 1))
    heavy, light = ((322 + sign * 13 * math.sqrt(70)) / 900 for sign in (1, -1))
    points = [(0.0, 128 / 225), (inner, heavy), (-inner, heavy), (outer, light), (-outer, light)]
    return [((1 + node) / 2, weight / 2) for node, weight in points]


_GAUSS_LEGENDRE = _gauss_legendre()


# --- Rényi DP at one order


def _epsilon(divergence: float, order: int, delta: float) -> float:
    """Canonne, Kamath and Steinke 2020, Proposition 12; 0 where delta pays for it all, by Pinsker's inequality."""
    if divergence <= delta * delta * (1 + _BOUND_TOLERANCE):
        return 0.0
    return max(0.0, divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))


@lru_cache(maxsize=4096)
def _divergence(order: int, squared_mu: float, sampling: float) -> float:
    """Rényi divergence of one Gaussian release, Poisson-sampled where sampling is below 1.

    E[(p/q)^order] = sum_i C(order, i) s^i (1 - s)^(order - i) e^((i^2 - i) squared_mu / 2) for sampling s. The weights
    sum to 1 and the exponent is 0 for i < 2, so it is 1 + sum over i >= 2 with e^(...) - 1: positive terms alone, and
    the logarithm of 1 + small stays exact however small.
    """
    if sampling == 1 or squared_mu in (0.0, math.inf):
        return order * squared_mu / 2
    terms = []
    for i in range(2, order + 1):
        exponent = (i * i - i) / 2 * squared_mu
        if exponent == math.inf:
            return math.inf
        binomial = math.lgamma(order + 1) - math.lgamma(i + 1) - math.lgamma(order - i + 1)
        weight = binomial + i * math.log(sampling) + (order - i) * math.log1p(-sampling)
        terms.append(weight + exponent + math.log(-math.expm1(-exponent)))
    largest = max(terms)
    excess = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
    logarithm = math.log1p(math.exp(excess)) if excess < 0 else excess + math.log1p(math.exp(-excess))
    return logarithm / (order - 1)


# --- reading


def _sites(certificate: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    sites = certificate.get("sites") if isinstance(certificate, Mapping) else None
    if not isinstance(sites, Mapping) or not sites or not all(isinstance(site, Mapping) for site in sites.values()):
        raise LedgerError("certificate: sites: expected one mapping a site, at least one")
    if certificate.get("noise_trust", "local") not in _TRUSTS:
        raise LedgerError(f"certificate: noise_trust: expected one of {', '.join(map(repr, _TRUSTS))}")
    return dict(sites)


def _events(site: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The events of a site. A field that is not known here could change what an event means: it is refused."""
    events = site.get("events")
    if not isinstance(events, list):
        raise LedgerError("site: events: expected a list")
    for event in events:
        if not (isinstance(event, Mapping) and event.get("type") == "gaussian" and set(event) <= _EVENT_FIELDS):
            raise LedgerError("event: not a gaussian event with fields that are known")
        if event.get("account") not in _ACCOUNTS:
            raise LedgerError("event: account: expected train or holdout")
        sensitivity = event.get("squared_sensitivity")
        if not isinstance(sensitivity, int) or sensitivity < 1:
            raise LedgerError("event: squared_sensitivity: expected a positive integer")
        if not isinstance(event.get("noise"), str):
            raise LedgerError("event: noise: expected the name of its source")
    return events


def _order(site: Mapping[str, Any]) -> int | None:
    """Rényi order that a site counts at; None for Gaussian DP."""
    accountant = site.get("accountant", {"kind": "gdp"})
    if accountant == {"kind": "gdp"}:
        return None
    if isinstance(accountant, Mapping) and set(accountant) == {"kind", "order"} and accountant["kind"] == "rdp":
        order = accountant["order"]
        if isinstance(order, int) and _ORDERS[0] <= order <= _ORDERS[1]:
            return order
    raise LedgerError("site: accountant: expected kind gdp, or kind rdp with an integer order from 2 to 1024")


def _delta(site: Mapping[str, Any]) -> float:
    """What is left of a site's delta for its releases, after what drawing the noise cost of it."""
    delta = _number(site, "delta") - (_number(site, "sampler_delta") if "sampler_delta" in site else 0.0)
    if not 0 < delta < 1:
        raise LedgerError("site: delta: expected between 0 and 1, and above sampler_delta")
    return delta


def _number(data: Any, name: str) -> float:
    """A field that must be a finite number >= 0."""
    value = data.get(name) if isinstance(data, Mapping) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if 0 <= number < math.inf:
            return number
    raise LedgerError(f"{name}: expected a number >= 0")
