"""What a guarantee means, in lines for people."""

import math
import textwrap
from collections.abc import Callable
from typing import Final

from common.evaluation import numerals
from common.evaluation.odds import Odds

_DUST: Final = 1e-5
_WIDTH: Final = 100
PRIORS: Final = (0.001, 0.01, 0.1, 0.5, 0.9)
"""How sure somebody was, where nobody says."""


def odds_said(odds: Odds) -> str:
    """A guarantee in odds, as text; upper bounds are rounded up, lower ones down."""
    once, total = f"{odds.delta:g}", numerals.epsilon(odds.total_epsilon)
    where = "one site" if odds.sites == 1 else f"{odds.sites} sites: together epsilon {total} at the same delta"
    beliefs = [
        [
            percent_up(one.prior),
            percent_up(one.at_most),
            percent_down(one.at_least),
            percent_up(one.rarely_above),
            percent_up(one.guess),
        ]
        for one in odds.beliefs
    ]
    found = [[percent_up(one.false_alarms), percent_up(one.pair), percent_up(one.gaussian)] for one in odds.tests]
    alone = "" if odds.sites == 1 else f": {odds.sites * odds.epsilon:g} and {odds.sites * odds.delta:g} of these sites"
    head = (
        f"Epsilon {odds.epsilon:g}, delta {once} at a site, for adding or removing one unit with all its records; the "
        f"unit is at {where}."
    )
    read = (
        f"At most and at least: the odds times e^{total} = {numerals.epsilon(odds.factor)}, or divided by it. "
        f"With delta 0 that would hold always. With this delta each is passed with a chance of "
        f"{chance_up(odds.beyond)} at most; what is passed with a chance of {once} at most is "
        f"e^{numerals.epsilon(odds.rare_epsilon)}."
    )
    rests = (
        f"Gaussian DP, mu {numerals.epsilon(odds.mu)}, is what a study with the accountant gdp (the default) keeps; "
        f"the chances and guesses above rest on it. With the accountant rdp, epsilon and delta alone hold{alone}."
    )
    parts = [
        head,
        "Somebody knows every other unit, and all that ever left. How sure can they become that the unit takes part?",
        _table(["before", "at most", "at least", f"at most, save {once}", "best guess right"], beliefs),
        read,
        "A test that accuses units of taking part finds, of those that do, at most:",
        _table(["false alarms", "by epsilon and delta", "by Gaussian DP"], found),
        rests,
        "Not in these numbers: what is true of everybody, and so of this unit too.",
    ]
    return "\n\n".join(textwrap.fill(part, _WIDTH) if isinstance(part, str) else "\n".join(part) for part in parts)


def _table(headings: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [headings, *rows]]


def percent_up(share: float) -> str:
    """In percent, rounded up: to three figures of it, or of what is missing to certainty where that is less.

    >>> percent_up(0.231969), percent_up(0.96073), percent_up(0.1), percent_up(0.9), percent_up(1.0)
    ('23.2 %', '96.08 %', '10 %', '90 %', '100 %')
    """
    return f"{_figures(share, math.ceil) if share <= 0.5 else 100 - _figures(1 - share, math.floor):.12g} %"


def percent_down(share: float) -> str:
    """The same, rounded down.

    >>> percent_down(0.0392703), percent_down(0.9996)
    ('3.92 %', '99.96 %')
    """
    return f"{_figures(share, math.floor) if share <= 0.5 else 100 - _figures(1 - share, math.ceil):.12g} %"


def _figures(share: float, rounding: Callable[[float], int]) -> float:
    """In percent, to three figures."""
    if share <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(100 * share)) - 2)
    # What is one part in 10^8 beyond a figure is that figure: bounds were widened by less than that.
    return rounding(100 * share / unit + (_DUST if rounding is math.floor else -_DUST)) * unit


def chance_up(value: float) -> str:
    """Two figures, rounded up.

    >>> chance_up(5.2093e-05), chance_up(0.1)
    ('5.3e-05', '0.1')
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit - _DUST) * unit:.2g}" if unit > 0 else "1e-300"
