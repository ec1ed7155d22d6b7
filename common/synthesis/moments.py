"""Means and standard deviations of columns that a consumer asks for; over present values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from common.data.encoding import Grid
from common.data.schema import ContinuousColumn, IntegerColumn
from common.data.selection import Selection
from common.errors import ConditionError

Moments = Mapping[str, float | tuple[float, float]]


@dataclass(frozen=True)
class Moment:
    """Of the present values of a column: their mean, and their standard deviation if that is asked for too."""

    name: str
    mean: float
    stddev: float | None = None

    @property
    def texts(self) -> list[str]:
        """What is asked for, one by one."""
        own = [f"mean {self.name}={self.mean:g}"]
        return own if self.stddev is None else [*own, f"sd {self.name}={self.stddev:g}"]

    @property
    def text(self) -> str:
        """What is asked for, in one."""
        return ", ".join(self.texts)

    @property
    def without_stddev(self) -> "Moment":
        """The mean alone."""
        return replace(self, stddev=None)

    def targets(self, powers: np.ndarray) -> list[np.ndarray]:
        """What is to be 0 in the mean over rows.

        Args:
            powers: (..., 3), expected 1, x - mean and (x - mean)^2 of a value x, 0 for one that is missing.
        """
        own = [powers[..., 1]]
        return own if self.stddev is None else [*own, powers[..., 2] - self.stddev**2 * powers[..., 0]]


def parse_moments(means: Sequence[str], stddevs: Sequence[str]) -> Moments:
    """Moments by column from texts such as `age=62`.

    Raises:
        ConditionError: one cannot be read or is given twice, or a standard deviation comes without its mean.
    """
    found, spread = _by_column(means, "mean"), _by_column(stddevs, "sd")
    for name in spread:
        if name not in found:
            raise ConditionError(f"sd {name}: ask for the mean of {name} too")
    return {name: (mean, spread[name]) if name in spread else mean for name, mean in found.items()}


def _by_column(texts: Sequence[str], kind: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = (part.strip() for part in text.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not equals or math.isnan(value):
            raise ConditionError(f"{kind} {text}: expected a column, =, and a number")
        if name in found:
            raise ConditionError(f"{kind} {name}: is given twice")
        found[name] = value
    return found


def read_moment(
    name: str, value: float | tuple[float, float], grid: Grid, left: Sequence[tuple[float, Selection]]
) -> Moment:
    """A moment of a column, if values that are left could have it.

    Args:
        name: of the column.
        value: mean, or mean and standard deviation.
        grid: of the column.
        left: what the rest of the request leaves of the column: shares of rows, and the values in them.

    Raises:
        ConditionError: they could not.
    """
    pair = value if isinstance(value, tuple) else (value,)
    numbers = [one for one in pair if isinstance(one, int | float | np.number) and math.isfinite(one)]
    if len(numbers) != len(pair) or len(pair) not in (1, 2):
        raise ConditionError(f"mean {name}: expected a number, or a mean and a standard deviation")
    moment = Moment(name, *map(float, numbers))
    if not isinstance(grid.column, IntegerColumn | ContinuousColumn):
        raise ConditionError(f"mean {name}: expected a numeric column")
    steps = grid.column.steps or 1
    ends = [(share, one.intervals[0][0] / steps, one.intervals[-1][1] / steps) for share, one in left if one.intervals]
    if not ends:
        raise ConditionError(f"mean {name}: the rest of the request leaves missing values alone")
    shares = np.array([share for share, _, _ in ends])
    low, high = (float(shares @ [end[side] for end in ends] / shares.sum()) for side in (1, 2))
    # Shares of several groups are rounded where they are multiplied.
    room = 1e-9 * max(abs(low), abs(high), 1e-300)
    if not low - room <= moment.mean <= high + room:
        raise ConditionError(
            f"mean {name}={moment.mean:g}: values that the column and the rest of the request allow have means from "
            f"{low:g} to {high:g}"
        )
    if moment.stddev is not None:
        least, most = min(end[1] for end in ends), max(end[2] for end in ends)
        largest = math.sqrt(max((most - moment.mean) * (moment.mean - least), 0.0))
        if not 0 < moment.stddev <= largest:
            raise ConditionError(
                f"sd {name}={moment.stddev:g}: with this mean, expected above 0 and at most {largest:g}"
            )
    return moment


class Tally:
    """Mean and standard deviation of a column of rows that go by."""

    def __init__(self, moment: Moment) -> None:
        """Of no rows yet; sums are about the mean that was asked for, so that nothing cancels."""
        self.moment = moment
        self._sums = np.zeros(3)

    def add(self, values: pd.Series) -> None:
        """Rows go by; values in the schema's dtype."""
        apart = values.to_numpy(np.float64, na_value=np.nan) - self.moment.mean
        apart = apart[~np.isnan(apart)]
        self._sums += [len(apart), apart.sum(), (apart**2).sum()]

    @property
    def mean(self) -> float | None:
        """Of present values; None where there are none."""
        count, first, _ = self._sums.tolist()
        return self.moment.mean + first / count if count else None

    @property
    def stddev(self) -> float | None:
        """Of present values, with their number as divisor; None where there are none."""
        count, first, second = self._sums.tolist()
        return math.sqrt(max(second / count - (first / count) ** 2, 0.0)) if count else None
