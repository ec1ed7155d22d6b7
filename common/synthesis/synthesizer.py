"""`Synthesizer`: rows on demand, as a data consumer's program asks for them."""

import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from common.data.schema import Column
from common.data.windows import WindowedTable
from common.errors import ConditionError, ReleaseFileError
from common.models.devices import device_named
from common.synthesis.card import CARD
from common.synthesis.moments import Moments, Tally
from common.synthesis.plan import Plan, make_plan
from common.synthesis.release import Release, load_release, read_text
from common.synthesis.request import Conditions, Proportions, Request, parse_request
from common.synthesis.rows import draw_planned, join_units
from common.verification import Verification, verify_release

MOST_SEED = 2**32 - 1
_MOST_ROWS = 10**9


@dataclass(frozen=True)
class Delivered:
    """One thing that was asked for, and what came of it.

    group: as it was asked for.
    requested: share of all rows, or mean or standard deviation of the present values of a column, in its unit.
    delivered: likewise, of the rows; None of a column without present values.
    kind: which of them.
    """

    group: str
    requested: float
    delivered: float | None
    kind: Literal["share", "mean", "sd"] = "share"


class Sample:
    """Rows that were asked for, some at a time, and how well they are what was asked for.

    Iterate it once for the rows; `delivered` counts what went by.

    effective: effective latents of the part of the request that has the fewest; see `make_plan`.
    chance: that a row of the generator is what was asked for.
    """

    def __init__(self, release: Release, request: Request, plan: Plan, *, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.effective, self.chance = plan.effective, plan.chance
        self._parts = draw_planned(release, plan, seed=seed, device=device)
        self._request = request
        self._counts = {name: np.zeros(len(groups), dtype=np.int64) for name, groups in request.proportions.items()}
        self._fulfilled = dict.fromkeys(request.conditions, 0)
        self._tallies = [Tally(moment) for moment in request.moments]
        self._rows = 0

    def __iter__(self) -> Iterator[WindowedTable]:
        """The rows, some at a time."""
        for units in self._parts:
            self._rows += len(units.records)
            for name, selection in self._request.conditions.items():
                self._fulfilled[name] += int(selection.holds(units.records[name]).sum())
            for name, groups in self._request.proportions.items():
                held = [group.selection.holds(units.records[name]).sum() for group in groups]
                self._counts[name] += np.array(held, dtype=np.int64)
            for tally in self._tallies:
                tally.add(units.records[tally.moment.name])
            yield units

    def delivered(self) -> list[Delivered]:
        """Of every condition, group, mean and standard deviation, counted on the rows that went by."""
        rows = max(1, self._rows)
        found = [Delivered(self._request.texts[name], 1.0, count / rows) for name, count in self._fulfilled.items()]
        for name, groups in self._request.proportions.items():
            counts = self._counts[name].tolist()
            found += [
                Delivered(group.text, group.share, count / rows) for group, count in zip(groups, counts, strict=True)
            ]
        for tally in self._tallies:
            asked = tally.moment
            found.append(Delivered(asked.texts[0], asked.mean, tally.mean, "mean"))
            if asked.stddev is not None:
                found.append(Delivered(asked.texts[1], asked.stddev, tally.stddev, "sd"))
        return found


@dataclass(frozen=True)
class Synthesizer:
    """A released generator that rows are drawn from.

    release: the generator and what belongs to it.
    device: that it computes on.
    folder: that it was read from, if it was.
    """

    release: Release
    device: torch.device
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "cpu") -> "Synthesizer":
        """Read a release folder. Nothing in it is executed.

        Raises:
            ReleaseFileError, StudyError: it is not what it should be, or the machine has no such device.
        """
        return cls(load_release(Path(folder)), device_named(device), Path(folder))

    def verify(self, *, keys: Collection[str] = (), site_keys: Mapping[str, str] | None = None) -> Verification:
        """Whether the release, as it is in its folder now, is what its certificate says; see `verify_release`.

        Args:
            keys: public keys in hexadecimal, one of which must be the coordinator's.
            site_keys: public keys of sites by name.

        Raises:
            ReleaseFileError: it was not read from a folder.
        """
        if self.folder is None:
            raise ReleaseFileError("release: was not read from a folder, so there is no certificate to verify")
        return verify_release(self.folder, keys=keys, site_keys=site_keys)

    @property
    def card(self) -> str:
        """The data card of the release, as Markdown.

        Raises:
            ReleaseFileError: it was not read from a folder, or has none.
        """
        if self.folder is None:
            raise ReleaseFileError("release: was not read from a folder, so there is no card")
        return read_text(self.folder / CARD)

    @property
    def schema(self) -> Mapping[str, Column]:
        """The columns of the records, in order."""
        return self.release.study.columns

    def sample(
        self,
        n: int,
        *,
        conditions: Conditions = (),
        proportions: Proportions = (),
        moments: Moments | None = None,
        match: bool = False,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Records, in the study's column order and dtypes.

        Args:
            n: how many, at least 1.
            conditions: what every row fulfils; see `parse_request`.
            proportions: shares of groups of rows; see `parse_request`.
            moments: means, or means and standard deviations, by column; see `parse_request`.
            match: whether columns are distributed as the release's one-way tables say, as far as their noise allows.
            seed: the same seed gives the same rows; None: one that nobody knows.

        Raises:
            ConditionError: it cannot be read, or the generator does not support it.
        """
        return self.sample_units(
            n, conditions=conditions, proportions=proportions, moments=moments, match=match, seed=seed
        ).records

    def sample_units(
        self,
        n: int,
        *,
        conditions: Conditions = (),
        proportions: Proportions = (),
        moments: Moments | None = None,
        match: bool = False,
        seed: int | None = None,
    ) -> WindowedTable:
        """Records and windows; arguments and errors as of `sample`."""
        return join_units(
            self.stream(n, conditions=conditions, proportions=proportions, moments=moments, match=match, seed=seed)
        )

    def stream(
        self,
        n: int,
        *,
        conditions: Conditions = (),
        proportions: Proportions = (),
        moments: Moments | None = None,
        match: bool = False,
        seed: int | None = None,
    ) -> Sample:
        """The same rows, some at a time: for tables that memory does not hold. Arguments and errors as of `sample`."""
        if not 1 <= n <= _MOST_ROWS:
            raise ConditionError(f"n={n}: expected from 1 to {_MOST_ROWS}")
        seed = secrets.randbelow(MOST_SEED + 1) if seed is None else seed
        if not 0 <= seed <= MOST_SEED:
            raise ConditionError(f"seed={seed}: expected from 0 to {MOST_SEED}")
        study = self.release.study
        request = parse_request(study, where=conditions, proportions=proportions, moments=moments, match=match)
        plan = make_plan(self.release, request, rows=n, seed=seed, device=self.device)
        return Sample(self.release, request, plan, seed=seed, device=self.device)
