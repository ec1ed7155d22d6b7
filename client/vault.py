"""The only door to a site's real rows.

What goes in is a request that the policy has allowed; what comes out was noised and written into the ledger. No method
returns, logs or raises anything else about the rows.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from client.records import read_windows
from common.data.encoding import encode_table, make_grids
from common.data.histograms import histogram_codes, histogram_layout, window_hits
from common.data.queries import Coded, Counter, Query, layout_of
from common.data.tables import Hits, TableLayout, cell_indices, one_way, sizes_of
from common.data.units import WINDOW_WEIGHT, bound_units
from common.data.windows import encode_windows
from common.models.embedding import SCALE, embed, freeze
from common.models.monitor import score_cells, score_layout
from common.models.neural import GRADIENT_SCALE, NeuralCritic, clipped_factors
from common.models.releases import one_way_layout
from common.models.verdicts import judge, one_hot
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Ledger
from common.privacy.mechanism import Contributions, CountMechanism
from common.privacy.noise import NoiseSource
from common.privacy.vectors import VectorContributions, VectorLayer, VectorMechanism, plain
from common.study import STEPS, Study
from common.wire.packing import shape_of

Account = Literal["train", "holdout"]
_CHUNK = 4096


class Vault:
    """A site's records as integer codes, behind the mechanism."""

    def __init__(
        self,
        table: pd.DataFrame,
        series: pd.DataFrame | None,
        study: Study,
        *,
        secret: bytes,
        ledger: Ledger,
        noise: NoiseSource,
    ) -> None:
        """Encode a parsed table and the long table of windows, text, where the study has them; neither is kept.

        Raises:
            SchemaError: a unit has more records than the study allows, or its window cannot be made.
        """
        bounded = bound_units(
            table,
            key=study.unit.key,
            max_records=study.unit.max_records,
            drop_surplus=study.unit.surplus == "drop",
            holdout=study.privacy.holdout,
            secret=secret,
        )
        self._study = study
        self._grids, self._channels = make_grids(study.measured), make_grids(study.channels)
        self._classes = len(study.label_values)
        self._positive = study.label_values.index(study.label.positive)
        self._windows: np.ndarray | None = None
        if study.windows is not None:
            assert series is not None
            values, lengths = read_windows(table, series, study)
            table = table.assign(**{STEPS: lengths})
            self._windows = encode_windows(values, lengths, self._channels)[bounded.rows]
        self._cells = encode_table(table, self._grids)[bounded.rows]
        self._labels = table[study.label.column].cat.codes.to_numpy().astype(np.int64)[bounded.rows]
        self._units = bounded.units
        # The steps of a window share a unit's weight: a finer unit keeps the shares whole numbers.
        finer = 1 if study.windows is None else WINDOW_WEIGHT
        self._weights, self._unit_weight = finer * bounded.weights, finer * bounded.unit_weight
        self._rows = {"train": np.flatnonzero(~bounded.holdout), "holdout": np.flatnonzero(bounded.holdout)}
        # One record of each unit, by keyed choice, for what cannot share a unit's weight between records.
        first = np.zeros(len(bounded.units), dtype=bool)
        first[np.unique(bounded.units, return_index=True)[1]] = True
        self._single = {account: rows[first[rows]] for account, rows in self._rows.items()}
        self._ledger = ledger
        self._noise = noise

    def one_way(self, *, spend: float, request: str, digest: str) -> tuple[np.ndarray, GaussianEvent]:
        """Noised one-way tables of the training units, by label class; layout from `one_way_layout`."""
        rows = self._rows["train"]
        layout = one_way_layout(self._study)
        own = histogram_layout(self._grids, self._classes)
        indices = cell_indices(histogram_codes(self._cells[rows], self._grids), self._labels[rows], own)
        parts: Iterable[Contributions] = [Contributions(self._units[rows], indices, self._weights[rows])]
        if self._windows is not None:
            windows, labels, moving = self._windows[rows], self._labels[rows], self._study.counts_moves
            hits = window_hits(windows, labels, self._channels, layout, whole=self._unit_weight, moving=moving)
            parts = itertools.chain(parts, map(functools.partial(self._of_hits, rows), hits))
        return self._release(parts, layout, "train", spend=spend, request=request, digest=digest)

    def tables(
        self,
        queries: Sequence[Query],
        emphasis: np.ndarray,
        bins: Sequence[np.ndarray],
        *,
        spend: float,
        request: str,
        digest: str,
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised tables of the training units over bins, by label class; layout from `layout_of`.

        Args:
            queries: of the study's catalogue.
            emphasis: (tables,) int64, as in `CountMechanism`.
            bins: the map from cells to bins of each column, then of each channel.
            spend: as the study's accountant counts.
            request: name of the request.
            digest: of the request.
        """
        rows = self._rows["train"]
        layout = layout_of(queries, sizes_of(bins), self._classes)
        counter = Counter(self._coded(rows, bins), self._study.windows, self._weights[rows])
        hits = (counter.hits(query, layout, number) for number, query in enumerate(queries))
        parts = map(functools.partial(self._of_hits, rows), hits)
        return self._release(parts, layout, "train", emphasis=emphasis, spend=spend, request=request, digest=digest)

    def scores(
        self, bins: Sequence[np.ndarray], weights: np.ndarray, *, spend: float, request: str, digest: str
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised table of a linear score by label, on held-out units alone; layout from `score_layout`."""
        rows = self._rows["holdout"]
        layout = score_layout()
        coded = self._coded(rows, bins)
        positive = (coded.labels == self._positive).astype(np.int64)
        indices = cell_indices(score_cells(coded, sizes_of(bins), weights), positive, layout)
        parts = [Contributions(self._units[rows], indices, self._weights[rows])]
        return self._release(parts, layout, "holdout", spend=spend, request=request, digest=digest)

    def embedding(
        self, bins: Sequence[np.ndarray], *, spend: float, request: str, digest: str
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised sum of the training units' embeddings by label, (classes * cells,); see `common.models.embedding`."""
        rows = self._single["train"]
        shape = shape_of(self._study, sizes_of(bins))
        features = freeze(shape, self._study.digest())
        mechanism = VectorMechanism((VectorLayer(1, self._classes * features.cells),), SCALE)
        chunks = (self._coded(rows[begin : begin + _CHUNK], bins) for begin in range(0, len(rows), _CHUNK))
        vectors = (plain(embed(coded, features, shape)) for coded in chunks)
        return self._release_vectors(mechanism, vectors, spend=spend, request=request, digest=digest)

    def gradient(
        self, critic: NeuralCritic, bins: Sequence[np.ndarray], *, spend: float, request: str, digest: str
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised sum of the training units' clipped gradients of a neural critic, (parameters,)."""
        rows, sampling = self._single["train"], self._study.critic.sampling
        if sampling < 1:
            rows = rows[self._noise.sample(len(rows), rate=sampling, context=request)]
        layers = tuple(VectorLayer(*layer) for layer in critic.shape.contribution)
        mechanism = VectorMechanism(layers, GRADIENT_SCALE)

        def factors() -> Iterator[VectorContributions]:
            for begin in range(0, len(rows), _CHUNK):
                coded = self._coded(rows[begin : begin + _CHUNK], bins)
                records, steps = one_hot(coded, shape_of(self._study, sizes_of(bins)))
                clip_norm = self._study.critic.clip_norm
                for part in clipped_factors(critic, records, steps, coded.labels, clip_norm=clip_norm):
                    yield VectorContributions(part)

        return self._release_vectors(
            mechanism, factors(), spend=spend, request=request, digest=digest, sampling=sampling
        )

    def verdicts(
        self, critic: NeuralCritic, bins: Sequence[np.ndarray], *, spend: float, request: str, digest: str
    ) -> tuple[np.ndarray, GaussianEvent]:
        """Noised counts of held-out units that each head of a neural critic takes for real, and of the others."""
        rows = self._single["holdout"]
        coded = self._coded(rows, bins)
        verdicts = judge(critic, *one_hot(coded, shape_of(self._study, sizes_of(bins))), coded.labels)
        layout = one_way([2] * verdicts.shape[1], 1)
        indices = cell_indices(verdicts, np.zeros(len(rows), dtype=np.int64), layout)
        whole = np.full(len(rows), self._unit_weight)
        parts = [Contributions(self._units[rows], indices, whole)]
        return self._release(parts, layout, "holdout", spend=spend, request=request, digest=digest)

    def _release_vectors(
        self,
        mechanism: VectorMechanism,
        vectors: Iterable[VectorContributions],
        *,
        spend: float,
        request: str,
        digest: str,
        sampling: float = 1.0,
    ) -> tuple[np.ndarray, GaussianEvent]:
        event = mechanism.plan(
            spend=spend, account="train", noise=self._noise, accountant=self._study.accountant, sampling=sampling
        )
        noised = mechanism.release(
            vectors, event=event, request=request, request_digest=digest, ledger=self._ledger, noise=self._noise
        )
        return noised, event

    def _coded(self, rows: np.ndarray, bins: Sequence[np.ndarray]) -> Coded:
        """Some records in bins."""
        columns = len(self._grids)
        records = np.column_stack([bin_of[self._cells[rows, at]] for at, bin_of in enumerate(bins[:columns])])
        if self._windows is None:
            return Coded(self._labels[rows], records)
        cells = self._windows[rows]
        windows = np.stack(
            [np.where(cells[:, :, at] < 0, -1, bin_of[cells[:, :, at]]) for at, bin_of in enumerate(bins[columns:])],
            axis=2,
        )
        return Coded(self._labels[rows], records, windows, (cells[:, :, 0] >= 0).sum(axis=1))

    def _of_hits(self, rows: np.ndarray, hits: Hits) -> Contributions:
        """Contributions of some records' hits, which number the records from 0."""
        return Contributions(self._units[rows][hits.rows], hits.cells[:, None], hits.weights)

    def _release(
        self,
        parts: Iterable[Contributions],
        layout: TableLayout,
        account: Account,
        *,
        spend: float,
        request: str,
        digest: str,
        emphasis: np.ndarray | None = None,
    ) -> tuple[np.ndarray, GaussianEvent]:
        mechanism = CountMechanism(layout.offsets, self._unit_weight, emphasis)
        event = mechanism.plan(spend=spend, account=account, noise=self._noise, accountant=self._study.accountant)
        noised = mechanism.release(
            parts, event=event, request=request, request_digest=digest, ledger=self._ledger, noise=self._noise
        )
        return noised, event
