"""Faults that break differential privacy, each as a small replacement in one product file, and the tests that see it.

Most were found in the field, in code that was published as private; `twin` says where, or what goes wrong. The controls
change as much of the code and keep every guarantee.
"""

from dataclasses import dataclass

_NOISE = "tests/common/privacy/test_noise.py::test_"
_KEYSTREAMS = "tests/common/privacy/test_keystreams.py::test_"
_MECHANISM = "tests/common/privacy/test_mechanism.py::test_"
_VECTORS = "tests/common/privacy/test_vectors.py::test_"
_BUDGET = "tests/common/privacy/test_budget.py::test_"
_ACCOUNTANTS = "tests/common/privacy/test_accountants.py::test_"
_LEDGER = "tests/common/privacy/test_ledger.py::test_"
_CERTIFICATE = "tests/common/test_certificate.py::test_"
_STUDY = "tests/common/test_study.py::test_"
_UNITS = "tests/common/data/test_units.py::test_"
_NEURAL = "tests/common/models/test_neural.py::test_"
_UNEXPECTED = "tests/client/test_unexpected.py::test_"
_WORKER = "tests/client/test_worker.py::test_"
_SITE = "tests/client/test_site.py::test_"
_UNPICKLED = "tests/test_architecture.py::test_a_file_unpickles_nothing_runs_no_text_and_uses_no_global_random_state"
_DIRTY = f"{_SITE}what_is_wrong_with_a_table_stays_at_the_site_and_its_text_reaches_not_even_the_log"
_POLICY = "tests/client/test_policy.py::test_"
_FORGED = "tests/client/test_forged_orders.py::test_"
_WITNESS = "tests/common/privacy/test_witness.py::test_"
_WITNESSES = "tests/client/test_witnesses.py::test_"
_SECURE_SUM = "tests/common/wire/test_secure_sum.py::test_"
_MASKS = "tests/client/test_masks.py::test_"
_HIDDEN = f"{_MASKS}each_release_is_sent_under_a_mask_and_what_lies_under_it_is_that_of_a_study_without"
_SAMPLING = "tests/client/test_sampling.py::test_"
_CRASHES = "tests/faults/test_crashes.py::test_a_fault_at_any_change_to_a_file_breaks_no_promise"
_POWER = f"{_CRASHES}[Fault.POWER_KEEPS_NAMES-4-25]"
_FEDERATION = "tests/simulations/test_federation.py::test_"
_PLAY = "tests/client/test_record_play.py::test_everything_but_the_released_numbers_is_the_same_"
_PLAYED = f"{_PLAY}with_one_unit_more_or_less"
_LAST = f"{_PLAY}when_the_last_unit_of_an_account_goes"


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A replacement in one product file.

    name: of the fault, or of the change.
    twin: the fault in the world that it stands for; of a control, why it breaks nothing.
    file: from the root of the tree.
    old: in the file exactly once.
    new: what stands there instead.
    is_fast: whether its tests take a second or two.
    """

    name: str
    twin: str
    file: str
    old: str
    new: str
    is_fast: bool = False


@dataclass(frozen=True, kw_only=True)
class Mutant(Patch):
    """A patch that breaks a guarantee.

    killed_by: node ids of pytest; one of these tests must fail.
    """

    killed_by: tuple[str, ...]


_MECHANISM_FILE = "common/privacy/mechanism.py"
_NOISE_FILE = "common/privacy/noise.py"
_VECTORS_FILE = "common/privacy/vectors.py"
_LEDGER_FILE = "common/privacy/ledger.py"
_NEURAL_FILE = "common/models/neural.py"
_VAULT_FILE = "client/vault.py"
_SITE_FILE = "client/site.py"
_POLICY_FILE = "client/policy.py"
_WITNESSES_FILE = "client/witnesses.py"
_MASKS_FILE = "client/masks.py"
_SECURE_SUM_FILE = "common/wire/secure_sum.py"

_DRAW = "noise.draw(event.cells, noise_stddev=event.noise_stddev, context=charge.request)"
_DRAWN = "return _rounded_gaussians(size, noise_stddev=noise_stddev, key=secrets.token_bytes(32))"

NOISE = (
    Mutant(
        name="no-noise",
        twin="Janus #3325: tests asked whether some noise was added, not how much",
        file=_MECHANISM_FILE,
        old=f"sums + {_DRAW}",
        new=f"sums + 0 * {_DRAW}",
        killed_by=(f"{_MECHANISM}the_noise_of_a_release_has_the_variance_of_its_event[36.0]",),
        is_fast=True,
    ),
    Mutant(
        name="noise-a-tenth",
        twin="Tramer 2022 (2202.12219): noise divided once too often, epsilon 0.21 was above 2.79",
        file=_MECHANISM_FILE,
        old="noise_stddev=event.noise_stddev, context=charge.request",
        new="noise_stddev=event.noise_stddev / 10, context=charge.request",
        killed_by=(f"{_MECHANISM}the_noise_of_a_release_has_the_variance_of_its_event[36.0]",),
    ),
    Mutant(
        name="noise-without-sensitivity",
        twin="the noise multiplier is drawn as it is, not times the clip norm",
        file=_MECHANISM_FILE,
        old="noise_stddev=event.noise_stddev, context=charge.request",
        new="noise_stddev=event.noise_stddev / event.scale, context=charge.request",
        killed_by=(f"{_MECHANISM}the_noise_of_a_release_has_the_variance_of_its_event[36.0]",),
    ),
    Mutant(
        name="noise-planned-without-sensitivity",
        twin="noise is planned for one grid unit, whatever a unit may add",
        file=_MECHANISM_FILE,
        old="accountant.noise_stddev(squared_sensitivity=squared_sensitivity, spend",
        new="accountant.noise_stddev(squared_sensitivity=1, spend",
        killed_by=(f"{_MECHANISM}a_plan_never_spends_more_than_it_was_given",),
    ),
    Mutant(
        name="one-draw-for-all-cells",
        twin="the same noise for every critic or coordinate: a difference of two cells has none",
        file=_MECHANISM_FILE,
        old="noise.draw(event.cells, noise_stddev",
        new="noise.draw(1, noise_stddev",
        killed_by=(f"{_VECTORS}the_noise_is_of_the_planned_size",),
    ),
    Mutant(
        name="key-constant",
        twin="a generator that is seeded anew with the same seed in each step",
        file=_NOISE_FILE,
        old=_DRAWN,
        new="return _rounded_gaussians(size, noise_stddev=noise_stddev, key=bytes(32))",
        killed_by=(f"{_NOISE}two_messages_never_get_the_same_noise",),
        is_fast=True,
    ),
    Mutant(
        name="key-made-once",
        twin="state that is copied by fork: workers with the same noise",
        file=_NOISE_FILE,
        old=_DRAWN,
        new=_DRAWN.replace("key=", 'key=self.__dict__.setdefault("_key", ').replace("(32))", "(32)))"),
        killed_by=(f"{_NOISE}two_messages_never_get_the_same_noise",),
    ),
    Mutant(
        name="key-of-32-bits",
        twin="Flower #7522: masks and noise from seeds folded to 32 bits, which can be tried out",
        file=_NOISE_FILE,
        old=_DRAWN,
        new=_DRAWN.replace("secrets.token_bytes(32)", "secrets.token_bytes(4) + bytes(28)"),
        killed_by=(f"{_KEYSTREAMS}each_message_takes_one_keystream_whose_256_bits_are_all_its_own[draw]",),
    ),
    Mutant(
        name="key-on-disk",
        twin="a seed saved for reproducibility: whoever reads it subtracts the noise",
        file=_NOISE_FILE,
        old=_DRAWN,
        new="""key = secrets.token_bytes(32)
        with open("noise.key", "wb") as file:
            file.write(key)
        return _rounded_gaussians(size, noise_stddev=noise_stddev, key=key)""",
        killed_by=(f"{_KEYSTREAMS}nothing_of_a_key_is_kept_or_written",),
    ),
    Mutant(
        name="normals-of-numpy",
        twin="Opacus without secure_mode: Mersenne Twister or PCG, and the low bits of floats",
        file=_NOISE_FILE,
        old=_DRAWN,
        new="return np.rint(noise_stddev * np.random.default_rng().standard_normal(size)).astype(np.int64)",
        killed_by=(f"{_KEYSTREAMS}each_message_takes_one_keystream_whose_256_bits_are_all_its_own[draw]",),
    ),
    Mutant(
        name="floats-decide-ties",
        twin="Mironov 2012, Haney 2022: what float arithmetic rounds wrongly tells of the sum",
        file=_NOISE_FILE,
        old="for row in np.flatnonzero(undecided):",
        new="for row in np.flatnonzero(undecided)[:0]:",
        killed_by=(f"{_NOISE}float_decisions_agree_with_high_precision_beside_ties[4.0]",),
    ),
    Mutant(
        name="noise-beyond-the-floats",
        twin="noise so wide that float64 skips integers: the low bits of a sum go out plain",
        file=_NOISE_FILE,
        old="if not 0 < noise_stddev <= MAXIMUM_STDDEV:",
        new="if not 0 < noise_stddev < float('inf'):",
        killed_by=(f"{_NOISE}noise_that_cannot_be_drawn_exactly_is_refused",),
    ),
    Mutant(
        name="seeded-noise-counts",
        twin="test mode that an event calls cryptographic",
        file=_NOISE_FILE,
        old='= "test-seed"\n',
        new='= "csprng"\n',
        killed_by=(f"{_NOISE}a_source_says_whether_its_noise_counts",),
    ),
    Mutant(
        name="seeded-noise-by-default",
        twin="test mode in production: OpenDP, Opacus and others with a fixed seed",
        file=_SITE_FILE,
        old="noise=noise or GaussianNoise()",
        new='noise=noise or __import__("common.privacy.noise").privacy.noise.SeededNoise(b"seed")',
        killed_by=(f"{_SITE}a_site_opened_by_its_file_draws_real_noise",),
    ),
)

SAMPLING = (
    Mutant(
        name="fixed-size-sample",
        twin="Chua 2024, jax_privacy #121: batches of a fixed size, accounted as Poisson",
        file=_NOISE_FILE,
        old="words < np.uint64(least)",
        new="np.argsort(np.argsort(words)) < round(rate * size)",
        killed_by=(f"{_NOISE}each_unit_takes_part_at_the_rate_and_the_size_of_a_sample_is_binomial[0.3]",),
        is_fast=True,
    ),
    Mutant(
        name="coins-tossed-once",
        twin="shuffled once: the same batch in every epoch",
        file=_NOISE_FILE,
        old="return _poisson_sample(size, rate=rate, key=secrets.token_bytes(32))",
        new="return _poisson_sample(size, rate=rate, key=bytes(32))",
        killed_by=(f"{_KEYSTREAMS}each_message_takes_one_keystream_whose_256_bits_are_all_its_own[sample]",),
    ),
    Mutant(
        name="rate-from-n",
        twin="Opacus #571, #819: the sampling rate is batch size over the number of records",
        file=_VAULT_FILE,
        old="self._noise.sample(len(rows), rate=sampling, context=request)",
        new="self._noise.sample(len(rows), rate=min(1.0, 10 / max(1, len(rows))), context=request)",
        killed_by=(f"{_SAMPLING}units_are_chosen_and_not_their_records",),
    ),
    Mutant(
        name="event-states-half-the-sampling",
        twin="Opacus #813: another rate is accounted than is drawn with",
        file=_VAULT_FILE,
        old="digest=digest, sampling=sampling\n",
        new="digest=digest, sampling=sampling / 2\n",
        killed_by=(f"{_SAMPLING}the_event_states_the_rate_and_costs_what_it_costs_with_it",),
    ),
    Mutant(
        name="sampling-understated-in-accounting",
        twin="the accountant is given the rate of another batch size",
        file="common/privacy/accountants.py",
        old="PoissonSampledDpEvent(sampling, GaussianDpEvent(multiplier))",
        new="PoissonSampledDpEvent(sampling / 2, GaussianDpEvent(multiplier))",
        killed_by=(f"{_ACCOUNTANTS}order_two_is_the_closed_form",),
    ),
    Mutant(
        name="amplification-by-rule-of-thumb",
        twin="Gaussian DP of samples by its central limit: too small an epsilon (Opacus' GDP accountant)",
        file="common/privacy/accountants.py",
        old="return event.spend\n",
        new="return event.spend * event.sampling**2\n",
        killed_by=(f"{_ACCOUNTANTS}gaussian_dp_counts_a_sampled_event_as_if_all_took_part",),
    ),
    Mutant(
        name="conversion-too-good",
        twin="a divergence is turned into epsilon by a formula that gives away too little",
        file="common/privacy/accountants.py",
        old="- logarithm / (self.order - 1) +",
        new="- logarithm / self.order +",
        killed_by=(f"{_ACCOUNTANTS}what_a_sum_stands_for_is_rounded_up_and_by_little",),
    ),
    Mutant(
        name="records-sampled",
        twin="records or windows are sampled and clipped, a person is accounted",
        file=_VAULT_FILE,
        old='rows, sampling = self._single["train"], self._study.critic.sampling',
        new='rows, sampling = self._rows["train"], self._study.critic.sampling',
        killed_by=(f"{_SAMPLING}units_are_chosen_and_not_their_records",),
    ),
    Mutant(
        name="records-embedded",
        twin="each record has a whole norm, a person with many records has many",
        file=_VAULT_FILE,
        old='rows = self._single["train"]\n        shape',
        new='rows = self._rows["train"]\n        shape',
        killed_by=(f"{_SITE}a_unit_is_one_vector_however_many_records_it_has",),
    ),
)

SENSITIVITY = (
    Mutant(
        name="clipping-skipped",
        twin="a flag that switches clipping off, or a layer that it forgets",
        file=_NEURAL_FILE,
        old="self._clip(block, gradients, clip_norm=clip_norm)",
        new="self._clip(_Block(2**62, 2.0**40, block.factors, block.columns), gradients, clip_norm=clip_norm)",
        killed_by=(f"{_NEURAL}no_norm_exceeds_its_bound",),
    ),
    Mutant(
        name="batch-clipped",
        twin="APPFL #349: the gradient of the batch is clipped, not each unit's",
        file=_NEURAL_FILE,
        old="block.target / np.maximum(norms, _TINY)",
        new="block.target / np.maximum(np.full_like(norms, norms.mean()), _TINY)",
        killed_by=(f"{_NEURAL}removing_a_unit_changes_the_sum_by_its_integers_alone",),
    ),
    Mutant(
        name="each-block-at-the-norm",
        twin="each layer or critic is clipped at the norm, one is charged",
        file=_NEURAL_FILE,
        old="bound = math.floor(GRADIENT_SCALE**2 * _SHARES[name] / whole)",
        new="bound = GRADIENT_SCALE**2",
        killed_by=(f"{_NEURAL}no_norm_exceeds_its_bound",),
    ),
    Mutant(
        name="rounded-to-nearest-after-clipping",
        twin="Casacuberta 2022: rounding takes a norm above the bound",
        file=_NEURAL_FILE,
        old="values[above] = np.trunc(values[above] * shrink)",
        new="values[above] = np.rint(values[above])",
        killed_by=(f"{_NEURAL}a_norm_that_rounding_takes_above_the_bound_is_brought_back",),
    ),
    Mutant(
        name="standardised-by-the-batch",
        twin="BatchNorm: a unit's gradient depends on who else is in the batch",
        file=_NEURAL_FILE,
        old='embedded = self._activate(bins @ self._forward["record_embedding"])',
        new='embedded = bins @ self._forward["record_embedding"]\n'
        "        embedded = self._activate(embedded - embedded.mean(axis=0))",
        killed_by=(f"{_NEURAL}removing_a_unit_changes_the_sum_by_its_integers_alone",),
    ),
    Mutant(
        name="activations-not-on-a-grid",
        twin="Casacuberta 2022: a matrix library adds in another order when a neighbour leaves",
        file=_NEURAL_FILE,
        old="            values += shift\n            values -= shift\n",
        new="            del shift\n",
        killed_by=(f"{_NEURAL}no_order_of_any_sum_changes_an_integer",),
    ),
    Mutant(
        name="windows-padded-to-the-longest",
        twin="padding to the longest of the batch: a mean over steps depends on who else is there",
        file=_VAULT_FILE,
        old="cells = self._windows[rows]\n",
        new="cells = self._windows[rows]\n"
        "        cells = cells[:, : max(1, int((cells[:, :, 0] >= 0).sum(axis=1).max(initial=0)))]\n",
        killed_by=(f"{_LAST}[p0-windows]",),
    ),
    Mutant(
        name="stepped-with-the-sums",
        twin="noise is drawn and charged, and the generator learns from what it was added to",
        file=_VAULT_FILE,
        old="        noised = mechanism.release(\n            vectors, event",
        new="        vectors = list(vectors)\n"
        "        noised = mechanism.exact_sum(vectors) + 0 * mechanism.release(\n            vectors, event",
        killed_by=(f"{_PLAYED}[records-without a patient in the middle]",),
    ),
    Mutant(
        name="divided-by-the-batch",
        twin="Opacus #571: noised sums are divided by the size that the batch happened to have",
        file=_VAULT_FILE,
        old="return noised, event\n\n    def _coded",
        new='return noised // max(1, len(self._single["train"])), event\n\n    def _coded',
        killed_by=(f"{_PLAYED}[records-without a patient in the middle]",),
    ),
    Mutant(
        name="norm-bound-with-a-tolerance",
        twin="assert norm <= clip * (1 + 1e-3): the sensitivity is that of the tolerance",
        file=_VECTORS_FILE,
        old="self._measure(pairs) > self._bound)",
        new="self._measure(pairs) > self._bound * 1.001)",
        killed_by=(f"{_VECTORS}a_norm_of_just_the_bound_passes_and_one_more_does_not[4095]",),
    ),
    Mutant(
        name="a-layer-outside-the-norm",
        twin="a gradient penalty on real rows that is added behind the clipping",
        file=_VECTORS_FILE,
        old="for layer, (left, right) in zip(self._layers, pairs, strict=True):\n            norms",
        new="for layer, (left, right) in zip(self._layers[:-1], pairs[:-1], strict=True):\n            norms",
        killed_by=(f"{_VECTORS}the_bound_holds_over_layers_and_counts_weights",),
        is_fast=True,
    ),
    Mutant(
        name="sums-in-floats",
        twin="Casacuberta 2022: float sums move by more than the unit that left",
        file=_VECTORS_FILE,
        old="self._totals = [np.zeros(layer.cells, dtype=np.int64)",
        new="self._totals = [np.zeros(layer.cells, dtype=np.float32)",
        killed_by=(f"{_VECTORS}more_units_than_a_float_can_add_are_added_exactly",),
    ),
    Mutant(
        name="tables-charged-as-one",
        twin="several queries on the same people, charged once",
        file=_MECHANISM_FILE,
        old="sum(int(one) ** 2 for one in self._emphasis)",
        new="max((int(one) ** 2 for one in self._emphasis), default=0)",
        killed_by=(f"{_MECHANISM}the_sensitivity_is_reached_by_a_unit_whose_records_are_alike",),
    ),
    Mutant(
        name="emphasis-left-out",
        twin="a weight that is applied before the noise and not counted in it",
        file=_MECHANISM_FILE,
        old="sum(int(one) ** 2 for one in self._emphasis)",
        new="len(self._emphasis)",
        killed_by=(f"{_MECHANISM}an_emphasis_multiplies_the_sums_of_its_table_and_adds_its_square_to_the_sensitivity",),
    ),
    Mutant(
        name="records-checked-one-by-one",
        twin="each record is within the bound, nobody adds up a person's",
        file=_MECHANISM_FILE,
        old="if int(per_unit.max()) > self.unit_weight:",
        new="if int(weights.max()) > self.unit_weight:",
        killed_by=(f"{_MECHANISM}contributions_that_break_the_bound_are_refused_before_any_charge",),
        is_fast=True,
    ),
    Mutant(
        name="records-of-full-weight",
        twin="contribution bounding forgotten: user-level claims on record-level noise",
        file="common/data/units.py",
        old="weights=(whole // used).astype(np.int64)",
        new="weights=np.full(len(used), whole)",
        killed_by=(f"{_UNITS}a_unit_keeps_its_bounded_number_of_records_and_weighs_one",),
    ),
    Mutant(
        name="surplus-records-kept",
        twin="the bound on records of a person is stated and never applied",
        file="common/data/units.py",
        old="kept = order[rank < max_records]",
        new="kept = order[rank < len(order)]",
        killed_by=(f"{_UNITS}a_unit_keeps_its_bounded_number_of_records_and_weighs_one",),
    ),
    Mutant(
        name="steps-of-full-weight",
        twin="each step of a window counts as a unit of its own",
        file="common/data/histograms.py",
        old="shares = whole // lengths[rows]",
        new="shares = np.full(len(rows), whole)",
        killed_by=(f"{_MECHANISM}one_unit_s_window_moves_the_sums_by_the_sensitivity_at_most",),
    ),
    Mutant(
        name="validated-on-training-units",
        twin="PATE-GAN family (2406.13985): figures from data that another account pays for",
        file=_VAULT_FILE,
        old='rows = self._rows["holdout"]\n        layout = score_layout()',
        new="rows = np.arange(len(self._units))\n        layout = score_layout()",
        killed_by=(f"{_SITE}training_and_holdout_units_make_up_the_table_together",),
    ),
    Mutant(
        name="holdout-by-position",
        twin="a split by row number: one person less moves the others from one account to the other",
        file="common/data/units.py",
        old='_hashes(np.asarray(names, dtype=object), secret, b"unit")[units]',
        new='_hashes(np.arange(len(names)), secret, b"unit")[units]',
        killed_by=(f"{_UNITS}taking_a_unit_away_changes_nothing_for_the_others",),
    ),
)

EGRESS = (
    Mutant(
        name="shifted-by-the-minimum",
        twin="PrivBayes, MST: bounds of a column read off the data",
        file=_VAULT_FILE,
        old="self._cells = encode_table(table, self._grids)[bounded.rows]",
        new="self._cells = encode_table(table, self._grids)[bounded.rows]\n"
        "        self._cells = self._cells - self._cells.min(axis=0, initial=99)",
        killed_by=(f"{_LAST}[p0-records]",),
    ),
    Mutant(
        name="labels-that-occur",
        twin="categories from the data: their number and order tell who is there",
        file=_VAULT_FILE,
        old="table[study.label.column].cat.codes",
        new="table[study.label.column].cat.remove_unused_categories().cat.codes",
        killed_by=(f"{_LAST}[p0-records]",),
    ),
    Mutant(
        name="rare-records-dropped",
        twin="outlier removal or k-anonymity before DP: who is kept depends on the others",
        file=_VAULT_FILE,
        old="        self._ledger = ledger\n",
        new="""        _, where, times = np.unique(self._cells[:, :2], axis=0, return_inverse=True, return_counts=True)
        is_known = times[where.ravel()] > 1
        self._rows = {account: rows[is_known[rows]] for account, rows in self._rows.items()}
        self._ledger = ledger
""",
        killed_by=(f"{_PLAYED}[records-with one more patient in front]",),
    ),
    Mutant(
        name="noise-steered-by-accuracy",
        twin="the paper's own method: the noise level follows figures on real data",
        file=_VAULT_FILE,
        old='return self._release(parts, layout, "holdout", spend=spend, request=request, digest=digest)\n\n'
        "    def _release_vectors",
        new="spend *= (1 + verdicts.sum()) / (2 + verdicts.size)\n"
        '        return self._release(parts, layout, "holdout", spend=spend, request=request, digest=digest)\n\n'
        "    def _release_vectors",
        killed_by=(f"{_LAST}[p3-records]",),
    ),
    Mutant(
        name="row-count-told",
        twin="Flower FedAvg: num_examples travels with every update",
        file=_SITE_FILE,
        old='"bound": self._policy.bound,',
        new='"bound": self._policy.bound,\n            "examples": len(self._vault._units),',
        killed_by=(f"{_SITE}describe_tells_the_budget_the_key_and_the_ledgers_head_and_spends_nothing",),
    ),
    Mutant(
        name="label-counts-told",
        twin="CTGAN-style conditional sampling: exact counts of the label",
        file=_SITE_FILE,
        old='{"event": event.as_dict(), **self._ledger_facts()}',
        new='{"event": event.as_dict(), **self._ledger_facts()}\n'
        '        facts["labels"] = np.bincount(self._vault._labels).tolist()',
        killed_by=(f"{_PLAYED}[records-without a patient in the middle]",),
    ),
    Mutant(
        name="accuracy-told",
        twin="losses and scores on real data in the metrics that every framework collects",
        file=_SITE_FILE,
        old="return Reply(self._settings.site, arrays=trained).encode()",
        new='facts = {"accuracy": float((self._vault._labels == 1).mean())}\n'
        "        return Reply(self._settings.site, facts, trained).encode()",
        killed_by=(f"{_PLAYED}[records-without a patient in the middle]",),
    ),
    Mutant(
        name="row-count-logged",
        twin="logs leave the building: a line with the number of records",
        file=_SITE_FILE,
        old="        return Vault(table, series, self._study",
        new='        _LOG.info("site=%s event=table_read rows=%d", self._settings.site, len(table))\n'
        "        return Vault(table, series, self._study",
        killed_by=(f"{_PLAYED}[records-without a patient in the middle]",),
    ),
    Mutant(
        name="sums-kept-at-the-site",
        twin="a cache of un-noised statistics beside the checkpoints",
        file=_SITE_FILE,
        old="        return Vault(table, series, self._study",
        new="        sums = table[self._study.label.column].value_counts().to_json()\n"
        '        (self._settings.state / "labels.json").write_text(sums)\n'
        "        return Vault(table, series, self._study",
        killed_by=(f"{_PLAYED}[records-without a patient in the middle]",),
    ),
    Mutant(
        name="empty-table-refused",
        twin="ZeroDivisionError of Opacus: a refusal tells that the last person has left",
        file="client/records.py",
        old="        return table, None if series is None else pd.concat(series, ignore_index=True)\n\n\ndef read_records_text",  # noqa: E501
        new="        if table.empty:\n"
        '            raise SchemaError("empty", ExitCode.TABLE_EMPTY)\n'
        "        return table, None if series is None else pd.concat(series, ignore_index=True)\n\n\ndef read_records_text",  # noqa: E501
        killed_by=(f"{_SITE}a_site_without_a_row_answers_like_any_other",),
    ),
    Mutant(
        name="fault-of-the-table-told",
        twin="validation errors as answers: which rule a single record broke",
        file=_SITE_FILE,
        old='_LOG.warning("site=%s event=table_refused reason=%s", name, error)\n'
        "            return refusal(name, ExitCode.INTERNAL)",
        new='_LOG.warning("site=%s event=table_refused reason=%s", name, error)\n'
        "            return refusal(name, error.code)",
        killed_by=(f"{_DIRTY}[text in a whole number]",),
    ),
    Mutant(
        name="error-text-told",
        twin="Flower: the text of an exception at a client is delivered to the server",
        file=_SITE_FILE,
        old="            return refusal(name, error.code)",
        new="            return Reply(name, refused=str(error)).encode()",
        killed_by=(f"{_FORGED}forged_orders_are_refused_by_a_rule_and_spend_nothing[shares]",),
    ),
    Mutant(
        name="cell-in-an-error-text",
        twin="pandas: could not convert string to float, and then the cell",
        file="common/data/schema.py",
        old="        raise SchemaError(_SAY_NO_NUMBER, ExitCode.NOT_A_NUMBER)",
        new='        raise SchemaError(f"{_SAY_NO_NUMBER} ({text})", ExitCode.NOT_A_NUMBER)',
        killed_by=(f"{_DIRTY}[text in a whole number]",),
    ),
    Mutant(
        name="text-of-an-exception-logged",
        twin="logging.exception: a traceback with a row in it",
        file=_SITE_FILE,
        old='_LOG.warning("site=%s event=failed error=%s", name, type(error).__name__)',
        new='_LOG.warning("site=%s event=failed error=%s", name, error)',
        killed_by=(f"{_UNEXPECTED}an_error_that_nobody_foresaw_is_told_by_its_kind_alone[read_records-ValueError]",),
    ),
    Mutant(
        name="bytes-unpickled",
        twin="CVE-2022-31604, CVE-2026-24186: a message that is run",
        file="common/wire/messages.py",
        old='        raise ProtocolError("message: larger than the limit")',
        new='        raise ProtocolError("message: larger than the limit")\n'
        '    if body[:1] == b"\\x80":\n'
        '        return __import__("pickle").loads(body)',
        killed_by=(f"{_UNPICKLED}[common/wire/messages.py]",),
        is_fast=True,
    ),
)

LEDGER = (
    Mutant(
        name="charged-after-the-draw",
        twin="a budget that is looked at once an epoch, when the epoch's noise is already out",
        file=_MECHANISM_FILE,
        old=f"""    ledger.authorise(charge)
    event = charge.event
    noised: np.ndarray = sums + {_DRAW}
""",
        new=f"""    event = charge.event
    noised: np.ndarray = sums + {_DRAW}
    ledger.authorise(charge)
""",
        killed_by=(f"{_VECTORS}contributions_are_checked_before_the_charge_and_noise_is_drawn_after_it",),
        is_fast=True,
    ),
    Mutant(
        name="charge-not-synced",
        twin="a ledger in the page cache: the power fails, and the budget is whole again",
        file=_LEDGER_FILE,
        old="file.flush()\n        os.fsync(file.fileno())\n",
        new="file.flush()\n",
        killed_by=(f"{_LEDGER}a_charge_is_synced_to_disk_before_noise_is_drawn",),
        is_fast=True,
    ),
    Mutant(
        name="folder-not-synced",
        twin="the file is on disk, its name is not",
        file=_LEDGER_FILE,
        old="            sync_folder(path.parent)\n",
        new="",
        killed_by=(f"{_LEDGER}a_new_ledger_syncs_its_entries_and_its_folder",),
    ),
    Mutant(
        name="failed-sync-tried-again",
        twin="fsyncgate: the second fsync succeeds, and what the first lost stays lost",
        file=_LEDGER_FILE,
        old="        if self._failed:\n",
        new='        if self._path.name == "":\n',
        killed_by=(f"{_LEDGER}a_disk_that_fails_lets_no_noise_out_and_nothing_more_is_granted[4-Fault.EIO]",),
    ),
    Mutant(
        name="first-charge-forgotten",
        twin="2406.13985: an accountant that skips the first step",
        file=_LEDGER_FILE,
        old="self.spent[study, event.account] += Fraction(self.spend_of(event))",
        new="self.spent[study, event.account] += Fraction(self.spend_of(event)) * (len(self.charges[study]) > 1)",
        killed_by=(f"{_LEDGER}the_budget_is_still_spent_after_a_restart",),
    ),
    Mutant(
        name="ledger-not-locked",
        twin="two processes of one site spend what is left at the same time",
        file=_LEDGER_FILE,
        old="                fcntl.flock(file, fcntl.LOCK_EX)\n",
        new="",
        killed_by=(f"{_LEDGER}processes_on_one_file_cannot_overspend_together",),
    ),
    Mutant(
        name="asset-total-ignored",
        twin="a second study on the same rows starts with a whole budget",
        file=_LEDGER_FILE,
        old="if own + Fraction(new) <= self.worst(study):",
        new="if new > 0:",
        killed_by=(f"{_LEDGER}studies_share_the_total_to_the_last_bit_each_at_its_dearer_account[False]",),
    ),
    Mutant(
        name="request-charged-twice",
        twin="Janus #3143: the same report in two jobs is released twice",
        file=_LEDGER_FILE,
        old="if charge.request in self.charges[study]:",
        new='if charge.request == "":',
        killed_by=(f"{_LEDGER}a_repeated_request_is_refused_and_writes_nothing",),
    ),
    Mutant(
        name="chain-not-checked",
        twin="a ledger in a text file that anybody may shorten",
        file=_LEDGER_FILE,
        old="    if not whole:\n",
        new="    if not entry:\n",
        killed_by=(f"{_LEDGER}a_rewritten_line_with_its_hash_right_needs_the_key",),
    ),
    Mutant(
        name="entry-not-signed",
        twin="a chain of hashes without a key: whoever can write the file can write another history",
        file=_LEDGER_FILE,
        old='        and is_signed(entry["hash"]',
        new='        or is_signed(entry["hash"]',
        killed_by=(f"{_LEDGER}an_entry_that_another_key_signed_is_refused",),
    ),
    Mutant(
        name="spend-rounded-down",
        twin="epsilon to six digits: many small releases come free",
        file="common/privacy/budget.py",
        old="return math.nextafter(squared_sensitivity / noise_stddev / noise_stddev * (1 + 2**-50), math.inf)",
        new="return math.nextafter(squared_sensitivity / noise_stddev / noise_stddev * (1 - 2**-50), 0)",
        killed_by=(f"{_BUDGET}a_stated_spend_is_never_below_the_exact_one",),
        is_fast=True,
    ),
    Mutant(
        name="budget-looked-at-before-the-spend",
        twin="if spent < budget: release; the last release passes it",
        file="common/privacy/budget.py",
        old="sum(Fraction(one) for one in (*spends, new)) <= budget",
        new="sum(Fraction(one) for one in spends) < budget",
        killed_by=(f"{_BUDGET}exactly_what_is_left_is_granted_and_one_bit_more_is_not",),
        is_fast=True,
    ),
    Mutant(
        name="request-computed-again",
        twin="Janus #1086: a request that comes twice is answered with fresh noise",
        file=_SITE_FILE,
        old="request = Request.decode(body)",
        new='request = Request(**{**vars(Request.decode(body)), "run": str(__import__("time").time_ns())})',
        killed_by=(f"{_SITE}a_repeated_request_gets_the_same_bytes_and_spends_nothing",),
    ),
    Mutant(
        name="split-made-anew",
        twin="a lost key is replaced: a person pays from the training budget, then from the other",
        file=_SITE_FILE,
        old="may_make=not self._ledger.charged()",
        new="may_make=True",
        killed_by=(f"{_SITE}a_key_that_was_lost_after_a_charge_is_not_replaced",),
    ),
    Mutant(
        name="seal-not-compared",
        twin="a reply that was changed on disk is sent as the one that was charged",
        file=_SITE_FILE,
        old="elif seal != digest:",
        new='elif seal == "":',
        killed_by=(f"{_SITE}a_reply_that_is_not_the_one_that_was_sealed_is_not_given_out",),
    ),
    Mutant(
        name="copy-answers-too",
        twin="a copy of a site makes anew what the original is about to send: two draws for one charge",
        file="client/replies.py",
        old=" and json.loads(_trace(path).read_bytes()) == trace_of(path)",
        new="",
        killed_by=(
            f"{_SITE}a_copy_of_the_folder_answers_nothing_that_was_charged_where_it_was_copied_from",
            f"{_SITE}a_copy_that_is_put_back_in_its_place_answers_nothing_that_was_charged",
        ),
    ),
    Mutant(
        name="other-draw-after-a-fault",
        twin="a fault that hangs on the noise is tried again with another draw: one bit for each, and no charge",
        file=_SITE_FILE,
        old="another draw would tell of this one\n            self._replies.end(request.study, name)\n",
        new="another draw would tell of this one\n",
        killed_by=(f"{_SITE}a_fault_that_may_hang_on_the_noise_is_not_tried_again_with_another_draw",),
    ),
    Mutant(
        name="two-workers",
        twin="one whose owner was killed and a new one make one answer twice",
        file="client/worker.py",
        old="held.enter_context(alone(",
        new="str(alone(",
        killed_by=(f"{_WORKER}a_worker_whose_owner_is_gone_and_that_has_not_ended_yet_keeps_another_from_beginning",),
    ),
    Mutant(
        name="answered-anew-after-its-seal",
        twin="whoever cuts a ledger by its seal is sent another draw for the same charge",
        file=_SITE_FILE,
        old="request.study, name, body))\n        self._replies.end(request.study, name)\n",
        new="request.study, name, body))\n",
        killed_by=(f"{_SITE}what_was_answered_is_not_answered_anew_where_its_reply_and_its_seal_are_gone",),
    ),
    Mutant(
        name="unsealed-release-trained-on",
        twin="generators follow from a draw that is made anew later: two draws for one charge",
        file="client/releases.py",
        old=" and self._is_sealed(asked.identity)",
        new="",
        killed_by=(f"{_SITE}a_release_that_a_crash_left_unsealed_does_not_count_until_it_is_made_anew",),
    ),
    Mutant(
        name="reply-not-synced",
        twin="rename without fsync: after a loss of power the sealed reply is empty",
        file="common/files.py",
        old="        os.fsync(file.fileno())\n    temporary.replace(path)",
        new="    temporary.replace(path)",
        killed_by=(_POWER,),
    ),
)

POLICY = (
    Mutant(
        name="policy-not-signed",
        twin="Flower: run_config is not signed; noise-multiplier=0.0001 from the command line",
        file=_POLICY_FILE,
        old="if not is_signed(body, signature, purpose=_PURPOSE, public=public):",
        new="if not signature:",
        killed_by=(f"{_POLICY}a_signature_of_another_key_or_for_another_purpose_is_none",),
    ),
    Mutant(
        name="signature-without-purpose",
        twin="what was signed for one thing passes for another",
        file="common/privacy/signatures.py",
        old='return b"privshare " + purpose.encode() + b"\\0" + body',
        new="return body",
        killed_by=(f"{_POLICY}a_signature_of_another_key_or_for_another_purpose_is_none",),
    ),
    Mutant(
        name="expiry-looked-at-when-opening",
        twin="Flower: an old signed bundle stays valid for ever",
        file=_POLICY_FILE,
        old='raise PolicyError("request.name: expected printable text")\n        self._check_date()',
        new='raise PolicyError("request.name: expected printable text")',
        killed_by=(f"{_POLICY}a_policy_holds_through_its_last_day_and_not_a_day_longer",),
    ),
    Mutant(
        name="columns-not-checked",
        twin="a study that asks for a column which the site never approved",
        file=_POLICY_FILE,
        old="if policy.columns is not None and (more := sorted(used - set(policy.columns))):",
        new="if policy.columns is not None and (more := sorted(set() - set(policy.columns))):",
        killed_by=(f"{_POLICY}a_site_does_not_open_for_a_study_whose_columns_it_does_not_allow",),
    ),
    Mutant(
        name="study-not-compared",
        twin="an order of another study, with other bounds, is answered under this one's name",
        file=_POLICY_FILE,
        old="if request.study != self._file.approved:",
        new="if not request.study:",
        killed_by=(f"{_FORGED}forged_orders_are_refused_by_a_rule_and_spend_nothing[headers]",),
    ),
    Mutant(
        name="digest-without-privacy",
        twin="a fingerprint of the study that leaves out what matters",
        file="common/study.py",
        old='data = self.model_dump(mode="json", by_alias=True)\n        if not self.constraints',
        new='data = self.model_dump(mode="json", by_alias=True, exclude={"privacy"})\n        if not self.constraints',
        killed_by=(f"{_STUDY}the_digest_differs_with_every_value_of_every_key",),
    ),
    Mutant(
        name="cap-not-applied",
        twin="a site's own limit is printed and not kept",
        file=_POLICY_FILE,
        old="return min(asked.epsilon, allowed.max_epsilon), min(",
        new="return asked.epsilon, min(",
        killed_by=(f"{_POLICY}no_more_is_spent_than_the_site_allows",),
    ),
    Mutant(
        name="larger-delta",
        twin="the delta of the larger of the study and the site",
        file=_POLICY_FILE,
        old="min(asked.delta, allowed.max_delta)",
        new="max(asked.delta, allowed.max_delta)",
        killed_by=(f"{_POLICY}a_site_narrows_the_budget_and_never_widens_it[limits0-1.0-1e-05]",),
    ),
    Mutant(
        name="share-without-a-limit",
        twin="a coordinator asks for three times the budget at once",
        file=_POLICY_FILE,
        old="not isinstance(share, int | float) or not 0 < share <= 1:",
        new="not isinstance(share, int | float) or not 0 < share:",
        killed_by=(f"{_FORGED}forged_orders_are_refused_by_a_rule_and_spend_nothing[shares]",),
    ),
    Mutant(
        name="spend-named-by-the-order",
        twin="noise, clip norm and sampling from a server's config",
        file=_POLICY_FILE,
        old="return self.allowed_spend(request.kind, float(share))",
        new='return float(request.options.get("spend", 0)) or self.allowed_spend(request.kind, float(share))',
        killed_by=(f"{_FORGED}nothing_that_an_order_says_of_noise_is_listened_to",),
    ),
    Mutant(
        name="least-noise-ignored",
        twin="a coordinator lowers the noise below what the site allows",
        file=_POLICY_FILE,
        old="return min(share * self._bound, self._most_spend(kind))",
        new="return share * self._bound",
        killed_by=(f"{_POLICY}a_site_draws_no_less_noise_than_its_own_least",),
    ),
)

WITNESSES = (
    Mutant(
        name="own-head-trusted",
        twin="ElephantDP (2401.17628): a snapshot that is restored has its budget back",
        file=_SITE_FILE,
        old="        self._witnesses.require()\n",
        new="",
        killed_by=(f"{_POLICY}each_release_needs_its_own_confirmation_and_what_was_answered_needs_none",),
    ),
    Mutant(
        name="confirmed-once",
        twin="of two machines with one ledger both go on once both were confirmed",
        file=_WITNESSES_FILE,
        old="return sum(sequence >= self._stated for sequence in self._confirmed.values())",
        new="return len(self._confirmed)",
        killed_by=(f"{_WITNESSES}nothing_is_spent_before_a_peer_confirmed_the_ledger_and_again_after_each_release",),
    ),
    Mutant(
        name="nonce-not-compared",
        twin="an attestation of last week, replayed to a site that was restored",
        file=_WITNESSES_FILE,
        old="if one.nonce == self.nonce and",
        new="if",
        killed_by=(f"{_WITNESSES}an_old_attestation_is_worth_nothing",),
    ),
    Mutant(
        name="anybody-confirms",
        twin="a quorum of parties that whoever asks may pick",
        file=_WITNESSES_FILE,
        old=" and one.witness in self.asked:",
        new=":",
        killed_by=(f"{_WITNESSES}of_many_peers_only_those_that_are_asked_confirm_and_any_of_them_may_stop_a_site",),
    ),
    Mutant(
        name="attestation-not-signed",
        twin="Flower: one node answers in another's name",
        file=_WITNESSES_FILE,
        old=" or not one.is_by(public):\n                continue",
        new=":\n                continue",
        killed_by=(f"{_WITNESSES}a_forged_attestation_confirms_nothing_and_stops_nobody",),
    ),
    Mutant(
        name="behind-is-forgotten",
        twin="the warning is logged, and the next request is answered",
        file=_WITNESSES_FILE,
        old="            self._behind = True\n",
        new="",
        killed_by=(f"{_FORGED}a_head_that_a_peer_signed_and_the_ledger_lacks_stops_a_site_for_good",),
    ),
    Mutant(
        name="step-back-not-noticed",
        twin="a coordinator goes on with a site that was restored from a backup",
        file="server/conductor.py",
        old='if "key" in facts and is_older:',
        new='if "key" in facts and said.sequence < 0:',
        killed_by=(f"{_FEDERATION}a_coordinator_does_not_go_on_with_a_site_whose_ledger_went_back",),
    ),
    Mutant(
        name="nonce-constant",
        twin="a challenge that is the same after every start: old answers fit",
        file=_WITNESSES_FILE,
        old="self.nonce = secrets.token_hex(16)",
        new="self.nonce = site.encode().ljust(16, b'.').hex()",
        killed_by=(f"{_WITNESSES}nothing_is_spent_before_a_peer_confirmed_the_ledger_since_it_started",),
    ),
    Mutant(
        name="what-was-seen-is-not-kept",
        twin="a witness that forgets when it restarts",
        file=_WITNESSES_FILE,
        old="            self._keep(self._seen | newer)\n",
        new="            self._seen |= newer\n",
        killed_by=(f"{_WITNESSES}what_is_seen_is_on_disk_before_it_is_attested",),
    ),
    Mutant(
        name="older-head-kept",
        twin="a witness that takes the last word for the newest",
        file=_WITNESSES_FILE,
        old="if is_newer(statement, known) and (is_own or continues(statement, known)):",
        new="if is_newer(statement, known) or statement.hash:",
        killed_by=(f"{_WITNESSES}the_newest_head_of_each_peer_is_kept_and_comes_back_after_a_restart",),
    ),
    Mutant(
        name="turns-are-taken",
        twin="a witness that follows whichever of two copies of a ledger is longer just now",
        file=_WITNESSES_FILE,
        old="(is_own or continues(statement, known))",
        new="statement.hash",
        killed_by=(f"{_WITNESSES}a_head_that_does_not_show_what_was_seen_before_is_not_kept",),
    ),
    Mutant(
        name="own-statement-not-compared",
        twin="a site whose own notes know more than its ledger starts all the same",
        file=_WITNESSES_FILE,
        old="            self._check_own(own.ledger, own.sequence, own.hash, ledger.hashes())\n",
        new="            del own\n",
        killed_by=(f"{_WITNESSES}a_restored_ledger_file_does_not_get_past_the_sites_own_notes",),
    ),
    Mutant(
        name="fork-not-seen",
        twin="a clone with a history of its own passes for the site",
        file="common/privacy/witness.py",
        old="later.hash_at(earlier.sequence) not in (None, earlier.hash)",
        new='statement.hash == ""',
        killed_by=(f"{_WITNESS}another_entry_of_the_same_number_is_a_fork",),
        is_fast=True,
    ),
)

MASKS = (
    Mutant(
        name="masks-skipped",
        twin="secure aggregation that is switched on and never reached",
        file=_SITE_FILE,
        old="if self._policy.is_masked else None",
        new="if self._policy.is_masked and False else None",
        killed_by=(f"{_HIDDEN}[records-one_way]",),
    ),
    Mutant(
        name="masks-by-request",
        twin="a server that asks for plain updates in its config",
        file=_SITE_FILE,
        old="if self._policy.is_masked else None",
        new='if self._policy.is_masked and request.options.get("masked", True) else None',
        killed_by=(f"{_MASKS}nothing_in_a_request_takes_the_mask_off[flag1]",),
    ),
    Mutant(
        name="mask-of-nothing",
        twin="the plain vector is sent in the type of a masked one",
        file=_MASKS_FILE,
        old="hidden = masked(noised, self.key, self.participants, request_identity=self.request, "
        "request_digest=self.digest)",
        new="hidden = noised.view(np.uint64).copy()",
        killed_by=(f"{_MASKS}what_is_sent_is_uniform",),
    ),
    Mutant(
        name="masks-with-a-subset",
        twin="a server that tells a site of fewer others, or of none but its own",
        file=_SECURE_SUM_FILE,
        old="        _check_names(found, peers)\n",
        new="        _check_names(found, found)\n",
        killed_by=(f"{_MASKS}participants_that_are_not_all_members_of_the_policy_are_refused[a site is missing]",),
    ),
    Mutant(
        name="mask-key-for-every-run",
        twin="one key for ever: who takes it once reads all that was ever sent",
        file=_MASKS_FILE,
        old="            key = MaskKey.generate()\n",
        new="            key = self._slot and self._slot.key or MaskKey.generate()\n",
        killed_by=(f"{_MASKS}each_run_has_a_key_of_its_own_and_only_the_newest_is_kept",),
    ),
    Mutant(
        name="mask-for-every-request",
        twin="two vectors under one mask: their difference is plain",
        file=_SECURE_SUM_FILE,
        old='"request": request_identity,',
        new='"request": "",',
        killed_by=(f"{_SECURE_SUM}masks_of_different_transcripts_are_independent",),
    ),
    Mutant(
        name="unmasked-vector-kept",
        twin="what was sent is written down before it is masked",
        file=_SITE_FILE,
        old='            facts["participants"] = mask.participants.digest\n',
        new='            facts["participants"] = mask.participants.digest\n'
        '            self._releases.keep(request, Reply(self._settings.site, facts, {"counts": noised}))\n',
        killed_by=(f"{_MASKS}what_lies_under_a_mask_is_in_no_file_and_no_log",),
    ),
    Mutant(
        name="other-participants-masked-for",
        twin="a vector under the masks of two sets of participants shows in the difference of two sums",
        file=_MASKS_FILE,
        old='if request.options.get("participants") != slot.participants.digest:',
        new='if request.options.get("participants") == "":',
        killed_by=(f"{_MASKS}a_request_of_no_agreed_masks_is_refused_and_spends_nothing",),
    ),
    Mutant(
        name="masked-after-the-spend",
        twin="what cannot be added up is paid for all the same",
        file=_SITE_FILE,
        old="        mask = self._masks.of(request, digest) if self._policy.is_masked else None\n"
        "        if charged is None:\n"
        "            self._replies.begin(request.study, name, digest)\n"
        "        else:  # a crash fell between the charge and the reply, which nobody got\n"
        "            self._ledger.reopen(name)\n"
        "        try:\n"
        "            body = self._answer(request, mask, *release(), lesson)\n",
        new="        if charged is None:\n"
        "            self._replies.begin(request.study, name, digest)\n"
        "        else:\n"
        "            self._ledger.reopen(name)\n"
        "        try:\n"
        "            noised, event = release()\n"
        "            mask = self._masks.of(request, digest) if self._policy.is_masked else None\n"
        "            body = self._answer(request, mask, noised, event, lesson)\n",
        killed_by=(f"{_MASKS}a_request_of_no_agreed_masks_is_refused_and_spends_nothing",),
    ),
    Mutant(
        name="mask-key-outlives-its-run",
        twin="a run that is over can be unmasked by whoever takes the disk",
        file=_MASKS_FILE,
        old="            self._keep(replace(slot, key=None))\n",
        new="            pass\n",
        killed_by=(f"{_MASKS}the_key_is_its_owners_alone_and_gone_when_the_run_is_closed",),
    ),
)

CERTIFICATE = (
    Mutant(
        name="second-accountant-not-asked",
        twin="an epsilon that nobody recomputes",
        file="common/certificate.py",
        old="    check_certificate(certificate)\n    return",
        new="    return",
        killed_by=(f"{_CERTIFICATE}a_site_that_spent_more_than_its_bound_gets_no_certificate",),
        is_fast=True,
    ),
    Mutant(
        name="lost-answers-not-counted",
        twin="a coordinator counts what it got, and not what was paid for it",
        file="common/certificate.py",
        old="        return self.spending.events",
        new="        return self.received",
        killed_by=(f"{_CERTIFICATE}what_a_site_was_charged_counts_whether_or_not_it_came",),
    ),
    Mutant(
        name="sealed-releases-only",
        twin="a site tells of what it sent, and not of what it was charged",
        file="common/privacy/ledger.py",
        old="for charge in book.charges[self._study].values())\n",
        new="for charge in book.charges[self._study].values() if charge.request in book.seals[self._study])\n",
        killed_by=(f"{_SITE}a_crash_before_the_reply_was_sealed_leaves_the_spend_standing_and_lets_nothing_out",),
    ),
    Mutant(
        name="second-accountant-lenient",
        twin="a check with a tolerance of one per cent",
        file="common/privacy/recount.py",
        old="_EPSILON_TOLERANCE, _EPSILON_DUST = 1e-6, 1e-9",
        new="_EPSILON_TOLERANCE, _EPSILON_DUST = 1e-2, 1e-9",
        killed_by=(f"{_CERTIFICATE}a_fault_of_the_first_accountant_is_found_by_the_second",),
    ),
    Mutant(
        name="cheaper-account-claimed",
        twin="one of several critics is left out of the sum",
        file="common/certificate.py",
        old="spent=max(spent.values())",
        new="spent=min(spent.values())",
        killed_by=(f"{_CERTIFICATE}the_dearest_account_of_the_dearest_site_is_what_is_claimed",),
    ),
    Mutant(
        name="delta-counted-once",
        twin="delta of one release for a run of many",
        file="common/certificate.py",
        old="sampler_delta = sum(event.cells for event in site.events) * DRAW_ERROR",
        new="sampler_delta = max((event.cells for event in site.events), default=0) * DRAW_ERROR",
        killed_by=(f"{_CERTIFICATE}every_cell_that_was_drawn_is_taken_off_delta",),
    ),
    Mutant(
        name="guarantee-with-seeded-noise",
        twin="a private label on a run in test mode",
        file="common/certificate.py",
        old='seeded = any(event.noise != "csprng"',
        new='seeded = all(event.noise != "csprng"',
        killed_by=(f"{_CERTIFICATE}noise_that_can_be_repeated_voids_the_guarantee",),
    ),
)

MUTANTS = (*NOISE, *SAMPLING, *SENSITIVITY, *EGRESS, *LEDGER, *POLICY, *WITNESSES, *MASKS, *CERTIFICATE)

CONTROLS = (
    Patch(
        name="other-source-of-the-same-bytes",
        twin="secrets.token_bytes is os.urandom",
        file=_NOISE_FILE,
        old=_DRAWN,
        new=_DRAWN.replace("secrets.token_bytes(32)", '__import__("os").urandom(32)'),
        is_fast=True,
    ),
    Patch(
        name="sums-by-cell",
        twin="whole numbers add up alike in any order",
        file=_MECHANISM_FILE,
        old="np.add.at(sums, part.indices[:, table], part.weights)",
        new="""order = np.argsort(part.indices[:, table])
                cells, starts = np.unique(part.indices[order, table], return_index=True)
                sums[cells] += np.add.reduceat(part.weights[order], starts) if len(cells) else 0""",
    ),
    Patch(
        name="products-by-einsum",
        twin="floats that hold every partial sum exactly add up alike in any order",
        file=_VECTORS_FILE,
        old="(left.T @ right).ravel()",
        new='np.einsum("ui,uo->io", left[::-1], right[::-1]).ravel()',
    ),
    Patch(
        name="smaller-chunks",
        twin="a unit's part does not depend on who is in its chunk",
        file=_VAULT_FILE,
        old="_CHUNK = 4096",
        new="_CHUNK = 7",
    ),
    Patch(
        name="smaller-micro-batches",
        twin="a unit's gradient does not depend on who is in its micro-batch",
        file=_NEURAL_FILE,
        old="size = micro_batch or (128 if shape.steps else max(_CACHED // max(shape.record_bins, 1), 128))",
        new="size = micro_batch or (5 if shape.steps else 9)",
    ),
    Patch(
        name="studies-added-up-from-the-last",
        twin="fractions add up alike in any order",
        file=_LEDGER_FILE,
        old="(self.worst(name) for name in self.bounds if name != study)",
        new="(self.worst(name) for name in reversed(self.bounds) if name != study)",
    ),
)
