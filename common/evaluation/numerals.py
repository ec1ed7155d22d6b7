"""How numbers are written for readers: three significant digits, an interval to the digits of its value, percent signs.

What is not a finite number is a dash; why it is not stands beside it. An epsilon is rounded up and a delta likewise:
a promise that is read must not be stronger than the one that was made.
"""

import math
from typing import Final

NOTHING: Final = "\N{EN DASH}"
_MINUS: Final = "\N{MINUS SIGN}"
_TIMES: Final = " \N{MULTIPLICATION SIGN} 10"
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LEAST: Final = 1e-4
"""What is smaller is written with a power of ten."""


def is_number(value: object) -> bool:
    """Whether it can be written as one: finite, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: object) -> str:
    """A whole number with its thousands apart.

    >>> count(53500)
    '53,500'
    """
    return f"{value:,.0f}".replace("-", _MINUS) if is_number(value) else NOTHING


def number(value: object, *, digits: int = 3) -> str:
    """Three significant digits; no more decimals than figures from 0 to 1 need.

    >>> number(0.81249), number(1234.5), number(-0.00004), number(0.0), number(None)
    ('0.812', '1,234', '\N{MINUS SIGN}4 \N{MULTIPLICATION SIGN} 10⁻⁵', '0', '\N{EN DASH}')
    """
    if not isinstance(value, int | float) or not is_number(value):
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) < _LEAST:
        return _power(value)
    return _fixed(value, _decimals(abs(value), digits))


def percent(value: object, *, digits: int = 3) -> str:
    """A share in percent.

    >>> percent(0.1063), percent(0.00123), percent(0.99999)
    ('10.6 %', '0.123 %', '100 %')
    """
    if not isinstance(value, int | float) or not is_number(value):
        return NOTHING
    return f"{number(100 * value, digits=digits)} %"


def share(value: float) -> str:
    """A share that is a plain number by itself, such as a level of confidence.

    >>> share(0.1), share(0.001)
    ('10 %', '0.1 %')
    """
    return f"{100 * value:g} %"


def figure(value: object, low: object = None, high: object = None, *, as_percent: bool = False) -> tuple[str, str]:
    """A value, and its interval to as many decimals; the interval is empty where it is not known.

    >>> figure(0.81249, 0.79, 0.8349)
    ('0.812', '(0.790-0.835)')
    >>> figure(-0.0102, -0.03, 0.012), figure(0.1063, 0.092, 0.121, as_percent=True)
    (('\N{MINUS SIGN}0.010', '(\N{MINUS SIGN}0.030 to 0.012)'), ('10.6 %', '(9.2-12.1 %)'))
    """
    known = [one for one in (value, low, high) if isinstance(one, int | float) and is_number(one)]
    if len(known) < 3:
        return (percent(value) if as_percent else number(value)), ""
    known = [100 * one if as_percent else one for one in known]
    largest = max(map(abs, known))
    if 0 < largest < 10 * _LEAST:
        middle, first, last = map(number, known)
    else:
        middle, first, last = (_fixed(one, _decimals(largest, 3)) for one in known)
    sign, between = " %" if as_percent else "", " to " if min(known[1:]) < 0 else "-"
    return f"{middle}{sign}", f"({first}{between}{last}{sign})"


def epsilon(value: float) -> str:
    """Four significant digits, rounded up.

    >>> epsilon(0.99999999935), epsilon(2.00011)
    ('1', '2.001')
    """
    return _up(value, 4)


def delta(value: float) -> str:
    """A power of ten, its factor rounded up to three digits.

    >>> delta(1e-06), delta(2.5e-07)
    ('10⁻⁶', '2.5 \N{MULTIPLICATION SIGN} 10⁻⁷')
    """
    if not 0 < value < 1:
        return _up(value, 3)
    exponent = math.floor(math.log10(value) + 1e-12)
    factor = _up(value / 10.0**exponent, 3)
    power = str(exponent).translate(_SUPERSCRIPTS)
    return f"10{power}" if factor == "1" else f"{factor}{_TIMES}{power}"


def _up(value: float, digits: int) -> str:
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    # A part in 10^9 is what the conversion to decimal digits may add by itself.
    return f"{math.ceil(value / unit * (1 - 1e-9)) * unit:.{digits}g}"


def _decimals(size: float, digits: int) -> int:
    """Decimals of so many significant digits; three at most unless the number is small, as columns then line up."""
    if size == 0:
        return 0
    # What rounds up to the next power of ten has its digits.
    wanted = digits - 1 - math.floor(math.log10(float(f"{size:.{digits - 1}e}")))
    return max(0, min(wanted, 3 if size >= 0.01 else wanted - 1))


def _fixed(value: float, decimals: int) -> str:
    """Without the minus of a number that is rounded to 0."""
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", _MINUS)


def _power(value: float) -> str:
    factor, exponent = f"{value:.2e}".split("e")
    return f"{float(factor):.3g}{_TIMES}{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", _MINUS)
