"""The only door to a site's real rows.

What goes in is a request that the policy has allowed; what comes out was noised and written into the ledger. No method
returns, logs or raises anything else about the rows.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from common.data.encoding import Grid, encode_table
from common.data.histograms import histogram_codes, histogram_layout
from common.data.tables import TableLayout, all_pairs, cell_indices
from common.data.units import bound_units
from common.models.monitor import score_cells, score_layout
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Ledger
from common.privacy.mechanism import Contributions, CountMechanism
from common.privacy.noise import NoiseSource
from common.study import Study

Account = Literal["train", "holdout"]


class Vault:
    """A site's records as integer codes, behind the mechanism."""

    def __init__(
        self,
        table: pd.DataFrame,
        study: Study,
        grids: Sequence[Grid],
        *,
        secret: bytes,
        ledger: Ledger,
        noise: NoiseSource,
    ) -> None:
        """Encode a parsed table; the table itself is not kept.

        Raises:
            SchemaError: a unit has more records than the study allows.
        """
        bounded = bound_units(
            table,
            key=study.unit.key,
            max_records=study.unit.max_records,
            drop_surplus=study.unit.surplus == "drop",
            holdout=study.privacy.holdout,
            secret=secret,
        )
        self._grids = tuple(grids)
        self._classes = len(study.label_values)
        self._positive = study.label_values.index(study.label.positive)
        self._cells = encode_table(table, self._grids)[bounded.rows]
        self._labels = table[study.label.column].cat.codes.to_numpy().astype(np.int64)[bounded.rows]
        self._bounded = bounded
        self._ledger = ledger
        self._noise = noise

    def one_way(self, *, spend: float, request: str, digest: str) -> tuple[np.ndarray, GaussianEvent]:
        """Noised one-way tables of the training units, by label class; layout from `histogram_layout`."""
        layout = histogram_layout(self._grids, self._classes)
        indices = cell_indices(histogram_codes(self._cells, self._grids), self._labels, layout)
        return self._release(indices, layout, "train", spend=spend, request=request, digest=digest)

    def pairs(
        self, bins: Sequence[np.ndarray], *, spend: float, request: str, digest: str
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised tables of every pair of columns over bins, by label class; layout from `all_pairs`."""
        layout = all_pairs([int(bin_of.max()) + 1 for bin_of in bins], self._classes)
        indices = cell_indices(self._binned(bins), self._labels, layout)
        return self._release(indices, layout, "train", spend=spend, request=request, digest=digest)

    def scores(
        self, bins: Sequence[np.ndarray], weights: np.ndarray, *, spend: float, request: str, digest: str
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised table of a linear score by label, on held-out units alone; layout from `score_layout`."""
        layout = score_layout()
        positive = (self._labels == self._positive).astype(np.int64)
        sizes = tuple(int(bin_of.max()) + 1 for bin_of in bins)
        indices = cell_indices(score_cells(self._binned(bins), sizes, weights), positive, layout)
        return self._release(indices, layout, "holdout", spend=spend, request=request, digest=digest)

    def _binned(self, bins: Sequence[np.ndarray]) -> np.ndarray:
        return np.column_stack([bin_of[self._cells[:, position]] for position, bin_of in enumerate(bins)])

    def _release(
        self, indices: np.ndarray, layout: TableLayout, account: Account, *, spend: float, request: str, digest: str
    ) -> tuple[np.ndarray, GaussianEvent]:
        mechanism = CountMechanism(layout.offsets, self._bounded.unit_weight)
        event = mechanism.plan(spend=spend, account=account, noise=self._noise)
        chosen = self._bounded.holdout if account == "holdout" else ~self._bounded.holdout
        contributions = Contributions(self._bounded.units[chosen], indices[chosen], self._bounded.weights[chosen])
        noised = mechanism.release(
            contributions, event=event, request=request, request_digest=digest, ledger=self._ledger, noise=self._noise
        )
        return noised, event
