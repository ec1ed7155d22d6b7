"""The site's own rules. The coordinator may ask; what this file does not allow is refused before anything is spent."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from common.data.queries import Query, catalogue
from common.data.schema import Number, Section, Text
from common.data.tables import sizes_of
from common.errors import PolicyError, StudyError
from common.models.monitor import BANDS
from common.privacy.budget import mu_of
from common.privacy.mechanism import MAXIMUM_EMPHASIS
from common.study import Study, explain, read_yaml
from common.wire.messages import KEPT, Request

MAX_CELLS = 20_000_000


class SiteSettings(Section):
    """site.yaml: a site's own paths and limits. It may narrow the study, never widen it."""

    site: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    # The table of this site's records, and the study file that was read and approved here.
    table: Path
    # The long table, for a study with windows.
    series: Path | None = None
    study: Path
    # Digest of the approved study: a study changed by one value is another study.
    approved: Annotated[Text, Field(pattern=r"^[0-9a-f]{64}$")]
    ledger: Path
    # The site's key and its sealed replies; private to the site.
    state: Path
    max_epsilon: Annotated[Number, Field(gt=0)]
    max_delta: Annotated[Number, Field(gt=0, lt=1)]
    # No release has less noise: standard deviation over what one unit can change. Whoever asks for less gets this.
    least_noise: Annotated[Number, Field(ge=1e-3, le=1e6)] | None = None


def load_site_settings(path: Path) -> SiteSettings:
    """Read and validate a site file.

    Raises:
        StudyError: what is wrong, by its path in the file.
    """
    try:
        return SiteSettings.model_validate(read_yaml(path, what="site file"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise StudyError(f"{path}: {explain(first, SiteSettings)}") from None


class SitePolicy:
    """What this site allows, fixed when it starts."""

    def __init__(self, settings: SiteSettings, study: Study) -> None:
        """Bind the policy to one approved study.

        Raises:
            PolicyError: the study is not the approved one.
        """
        if study.digest() != settings.approved:
            raise PolicyError(f"{settings.study}: the study is not the one that this site approved")
        if (settings.series is None) != (study.windows is None):
            raise PolicyError("series: expected in the site file if, and only if, the study has windows")
        self._study = study
        self._digest = settings.approved
        epsilon = min(study.privacy.epsilon, settings.max_epsilon)
        delta = min(study.privacy.delta, settings.max_delta)
        self._squared_mu = mu_of(epsilon=epsilon, delta=delta) ** 2 * (1 - 1e-12)
        self._most_spend = 1 / settings.least_noise**2 if settings.least_noise else np.inf

    @property
    def squared_mu(self) -> float:
        """The budget of each account of units, as squared mu: the smaller of the study's and the site's own cap."""
        return self._squared_mu

    @property
    def is_local(self) -> bool:
        """Whether the study's discriminators stay at the sites."""
        return self._study.discriminators.scope == "local"

    def keeps(self, request: Request) -> bool:
        """Whether the release that a request asks for stays here, and only its event is told."""
        return self.is_local and request.kind in KEPT

    def check(self, request: Request) -> None:
        """Refuse a request of another study.

        Raises:
            PolicyError: the request names another study.
        """
        if request.study != self._digest:
            raise PolicyError("request.study: not the study that this site approved")

    def spend_of(self, request: Request) -> float:
        """Squared mu that the request may spend: the share of the budget that it asks for, down to the least noise.

        Raises:
            PolicyError: the share is not a number in (0, 1].
        """
        share = request.options.get("share")
        # NaN compares as false; a whole number may be too long to ask whether it is finite.
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise PolicyError("request.share: expected a number above 0, at most 1")
        return min(float(share) * self._squared_mu, self._most_spend)

    def check_training(self, request: Request) -> None:
        """Bound the work that a training request may cause.

        Raises:
            PolicyError: more steps, or other numbers, than the study allows.
        """
        steps, rate = request.options.get("steps"), request.options.get("learning_rates")
        if not isinstance(steps, int) or not 0 <= steps <= self._study.rounds.local_steps:
            raise PolicyError("request.steps: expected at most rounds.local_steps of the study")
        if (
            not isinstance(rate, list)
            or len(rate) != 2
            or not all(isinstance(one, float) and 0 <= one <= 1 for one in rate)
        ):
            raise PolicyError("request.learning_rates: expected two numbers between 0 and 1")
        if not isinstance(request.options.get("seed"), int):
            raise PolicyError("request.seed: expected a whole number")

    def check_bins(self, bin_of: np.ndarray, n_cells: int) -> np.ndarray:
        """A map from cells to bins as a coordinator sent it, if it is one.

        Any map has the same sensitivity: a record is in one bin. What is checked is that it is a map.

        Raises:
            PolicyError: another length, type or numbering.
        """
        valid = bin_of.shape == (n_cells,) and bin_of.dtype == np.int64 and n_cells > 0
        if not valid or int(bin_of.min()) != 0 or len(np.unique(bin_of)) != int(bin_of.max()) + 1:
            raise PolicyError("request.bins: expected a bin for each cell, numbered from 0 without gaps")
        return bin_of

    def check_tables(self, request: Request) -> tuple[list[Query], np.ndarray]:
        """The tables of the study's catalogue that a request names, and their emphasis, (tables,) int64.

        Raises:
            PolicyError: not numbers of the catalogue in rising order, or not an emphasis for each.
        """
        tables, emphasis = request.arrays.get("tables"), request.arrays.get("emphasis")
        known = catalogue(len(self._study.measured), self._study.windows)
        if (
            tables is None
            or tables.dtype != np.int64
            or tables.ndim != 1
            or not 0 < len(tables) <= len(known)
            or bool((np.diff(tables) <= 0).any())
            or not 0 <= tables[0] <= tables[-1] < len(known)
        ):
            raise PolicyError("request.tables: expected numbers of the study's catalogue, in rising order")
        if (
            emphasis is None
            or emphasis.dtype != np.int64
            or emphasis.shape != tables.shape
            or not 1 <= emphasis.min() <= emphasis.max() <= MAXIMUM_EMPHASIS
        ):
            raise PolicyError(f"request.emphasis: expected a whole number from 1 to {MAXIMUM_EMPHASIS} a table")
        return [known[number] for number in tables], emphasis

    def check_size(self, cells: int) -> None:
        """Bound the memory that one release may take.

        Raises:
            PolicyError: more cells than any useful release has.
        """
        if cells > MAX_CELLS:
            raise PolicyError(f"request.bins: expected at most {MAX_CELLS} cells in one release")

    def check_weights(self, request: Request, bins: list[np.ndarray]) -> np.ndarray:
        """The weights of a linear score, if they fit the bins.

        Raises:
            PolicyError: absent, or of another shape or type.
        """
        weights = request.arrays.get("weights")
        expected = sum(sizes_of(bins)[: len(self._study.measured)]) + BANDS - 1
        if weights is None or weights.shape != (expected,) or weights.dtype != np.float64:
            raise PolicyError("request.weights: expected one number a bin and the band edges")
        return weights
