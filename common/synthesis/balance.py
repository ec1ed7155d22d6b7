"""Means of columns: rows of all parts of a request weighed at once, as little as it takes.

A row is a class, a latent and the bins of the columns concerned, drawn once in each part; the other columns come later.
Latents alone would not do: most of what a column varies by is within a latent, and means would be out of reach. How
many values of a column are missing stays as it is.

The base weights have the shares that were asked for already. The weights that are nearest to them and have those shares
and the means are the nearest to the generator's own, too (Csiszár 1975, theorem 3.2: projections one after the other),
but that a rare group may be made a large one: the cap is on what means add to that.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from common.synthesis.entropy import MOST_ENTRIES, nearest
from common.synthesis.latents import Drawn, Latents
from common.synthesis.moments import Moment

_HALVINGS: Final = 12


def fits(parts: int, classes: int, latents: int, *, features: int) -> bool:
    """Whether memory holds the problem."""
    return parts * classes * latents * (features + 1) <= MOST_ENTRIES


class Balance:
    """The problem of one request at some latents."""

    def __init__(
        self,
        latents: Latents,
        parts: Sequence[Mapping[str, int]],
        shares: np.ndarray,
        groups: np.ndarray,
        moments: Sequence[Moment],
        random: np.random.Generator,
    ) -> None:
        """Pose it.

        Args:
            latents: that know the bins of the columns concerned.
            parts: selections of each, by number.
            shares: (parts,), of rows that the parts have; 0 for one that is left out.
            groups: (parts, groups), what is to be 0 in the mean over parts for the shares to be those asked for.
            moments: that are asked for.
            random: of the bins.
        """
        base = np.stack([latents.weights(part) for part in parts])
        totals = base.sum(axis=(1, 2))
        base *= np.divide(shares, totals, out=np.zeros_like(totals), where=totals > 0)[:, None, None]
        self._shape, self._held = base.shape, np.flatnonzero(base.ravel())
        self._base = base.ravel()[self._held]
        self._groups = np.repeat(groups, base[0].size, axis=0)[self._held]
        self._moments = moments
        names = [moment.name for moment in moments]
        self.drawn: list[Drawn] = [latents.draw_columns(names, part, random) for part in parts]
        self._powers = {
            moment.name: np.stack(
                [
                    latents.powers(moment.name, moment.mean, part, drawn)
                    for part, drawn in zip(parts, self.drawn, strict=True)
                ]
            ).reshape(-1, 3)[self._held]
            for moment in moments
        }

    def ratios(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What the base weights are to be multiplied by, (parts, classes, latents), and the parts' shares, (parts,).

        None where no weights have the means and shares.
        """
        weights = self._solve(self._moments)
        if weights is None:
            return None
        ratios, whole = np.zeros(math.prod(self._shape)), np.zeros(math.prod(self._shape))
        ratios[self._held], whole[self._held] = weights / self._base, weights
        return ratios.reshape(self._shape), whole.reshape(self._shape).sum(axis=(1, 2))

    def guilty(self) -> list[str]:
        """Texts of moments that are too much: without one of them there is a solution.

        Of a column whose standard deviation is, its mean is not.
        """
        found: list[str] = []
        for moment in self._moments:
            *_, last = moment.texts
            found += next(
                ([text] for text in (last, moment.texts[0]) if self._solve(_without(self._moments, text)) is not None),
                [],
            )
        return found

    def too_much_alone(self) -> list[str]:
        """Of each moment that the rest of the request does not allow even without the other moments."""
        return [moment.text for moment in self._moments if self._solve([moment]) is None]

    def reachable(self, text: str) -> float:
        """How near to a moment the rest of the request lets one come, in units of the column.

        Args:
            text: from `guilty`.
        """
        rest = _without(self._moments, text)
        weights = self._solve(rest)
        assert weights is not None
        asked = next(one for one in self._moments if text in one.texts)
        count, first, second = weights @ self._powers[asked.name]
        is_mean = text == asked.texts[0]
        spread = math.sqrt(max(second / count - (first / count) ** 2, 0.0))
        near, far = (asked.mean + first / count, asked.mean) if is_mean else (spread, asked.stddev or 0.0)
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            tried = Moment(asked.name, middle) if is_mean else Moment(asked.name, asked.mean, middle)
            others = [one for one in rest if one.name != asked.name]
            near, far = (middle, far) if self._solve([*others, tried]) is not None else (near, middle)
        return float(near)

    def _solve(self, moments: Sequence[Moment]) -> np.ndarray | None:
        centers = {moment.name: moment.mean for moment in self._moments}
        columns = [self._groups]
        for moment in moments:
            powers = self._powers[moment.name]
            columns += moment.targets(_about(powers, moment.mean - centers[moment.name]))
            # Or else fewer present values would be the nearest way to a mean, and none at all a way to any.
            if not powers[:, 0].all():
                columns.append(powers[:, 0] - self._base @ powers[:, 0])
        return nearest(self._base, np.column_stack(columns))


def _without(moments: Sequence[Moment], text: str) -> list[Moment]:
    """Without the moment of a text: of a mean the whole, of a standard deviation that alone."""
    return [one.without_stddev if text in one.texts[1:] else one for one in moments if text != one.texts[0]]


def _about(powers: np.ndarray, shift: float) -> np.ndarray:
    """Powers about another center."""
    if not shift:
        return powers
    count, first, second = powers.T
    return np.column_stack([count, first - shift * count, second - 2 * shift * first + shift**2 * count])
