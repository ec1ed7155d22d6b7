"""What the measured discriminators ask: every table once, all of the budget, and again what is fitted worst."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.encoding import make_grids
from common.data.histograms import histogram_layout
from common.data.queries import Family, catalogue
from common.models.critics import Joins, expectations
from common.models.generator import initialise
from common.models.releases import Bins, Release, bins_from
from common.models.targets import TableIndex, TargetBuilder
from common.study import Study, load_study
from common.wire.packing import shape_of
from server.survey import plan_survey, worst_fitted

STUDIES = Path(__file__).parents[2] / "simulations" / "studies"
CPU = torch.device("cpu")
# Shares of the parts of the study `accounts`.
PAIRS = 10**0.5 / (10**0.5 + 143**0.5)
WINDOWS = (1 - PAIRS) / 2
EACH = (("couplings", WINDOWS), ("dynamics", WINDOWS))


def study_with(name: str, **weights: float) -> Study:
    return load_study(STUDIES / f"{name}.yaml").with_overrides(discriminators=weights, model={"width": 16, "latent": 4})


def bins_of(study: Study) -> Bins:
    layout = histogram_layout(make_grids(study.measured), len(study.label_values), make_grids(study.channels))
    counts = np.random.default_rng(0).uniform(0, 400, layout.n_cells)
    return bins_from(Release(counts, 100.0, {}), study)


@pytest.mark.parametrize("name", ["accounts", "icu", "adult"])
def test_every_table_of_the_catalogue_is_asked_once_for_the_whole_budget(name: str) -> None:
    study = study_with(name)
    survey = plan_survey(study, bins_of(study), [0.05] * 4)
    numbers = np.concatenate([part.numbers for part in survey.parts])
    assert sorted(numbers) == list(range(len(catalogue(len(study.measured), study.windows))))
    assert sum(part.share for part in survey.parts) == pytest.approx(1)
    for part in survey.parts:
        assert (np.diff(part.numbers) > 0).all()


@pytest.mark.parametrize("name", ["accounts", "icu", "adult"])
def test_tables_of_two_channels_weigh_twice_as_much_as_any_other(name: str) -> None:
    study = study_with(name)
    for part in plan_survey(study, bins_of(study), [0.05] * 4).parts:
        expected = [2 if query.family == Family.TOGETHER else 1 for query in part.queries]
        assert part.emphasis.tolist() == expected
        assert part.only(part.numbers[1::2]).emphasis.tolist() == expected[1::2]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"temporal": 0.0}, {"pairs": 1.0}),
        ({"statistical": 0.0}, {"couplings": 0.5, "dynamics": 0.5}),
        # Ten tables of pairs, and 143 of windows in two parts.
        ({}, {"pairs": PAIRS, "couplings": WINDOWS, "dynamics": WINDOWS}),
        (
            {"statistical": 3.0, "temporal": 1.0},
            {name: share / (2 * PAIRS + 1) for name, share in (("pairs", 3 * PAIRS), *EACH)},
        ),
        ({"semantic": 1.0, "neural": 1.0}, {name: share / 2 for name, share in (("pairs", PAIRS), *EACH)}),
    ],
)
def test_weights_share_the_budget_and_zero_switches_a_discriminator_off(
    weights: dict[str, float], expected: dict[str, float]
) -> None:
    study = study_with("accounts", **weights)
    survey = plan_survey(study, bins_of(study), [0.05] * 4)
    assert {part.name: part.share for part in survey.parts} == pytest.approx(expected)


@pytest.mark.parametrize("name", ["accounts", "icu"])
def test_discriminators_of_one_weight_have_the_least_noise_that_the_budget_allows(name: str) -> None:
    parts = plan_survey(study_with(name), bins_of(study_with(name)), [0.05] * 4).parts
    pairs = next(part for part in parts if part.name == "pairs")
    tables = np.array([len(pairs.numbers), sum(len(part.numbers) for part in parts if part is not pairs)])

    def variances(share: float) -> float:
        """Of one count of each, summed, where the tables of pairs have so much of the budget."""
        return float((tables / (share, 1 - share)).sum())

    others = np.linspace(0.01, 0.99, 99)
    assert variances(pairs.share) <= min(map(variances, others))


def test_less_noise_buys_finer_groups_and_dynamics_keep_their_bins() -> None:
    study = study_with("accounts")
    bins = bins_of(study)
    coarse, fine = (plan_survey(study, bins, [budget] * 4) for budget in (1e-4, 10.0))
    assert sum(group.max() for group in coarse.groups) < sum(group.max() for group in fine.groups)
    dynamics = next(part for part in coarse.parts if part.name == "dynamics")
    assert [len(one) for one in dynamics.maps] == list(bins.sizes)
    assert all(np.array_equal(one, np.arange(len(one))) for one in dynamics.maps)


def test_the_worst_fitted_table_is_the_one_that_is_wrong() -> None:
    study = study_with("accounts")
    bins = bins_of(study)
    survey = plan_survey(study, bins, [0.05] * 4)
    shape = shape_of(study, bins.sizes)
    generator, builder = initialise(shape, seed=1), TargetBuilder(shape, survey.groups)
    index = TableIndex(shape, survey.groups)
    random = np.random.default_rng(0)
    part = next(part for part in survey.parts if part.name == "pairs")
    labels = torch.arange(shape.classes).repeat_interleave(256)
    noise = torch.randn(len(labels), shape.noise, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = expectations(generator(noise, labels), shape.classes, Joins(builder.build(np.ones(2)).groups, CPU))
    for number, query in zip(part.numbers, part.queries, strict=True):
        cells = index.table(query)
        truth = expected[Family.PAIR].numpy()[:, *cells] * 1000.0
        off = 40.0 if number == part.numbers[3] else 0.0
        builder.add_table(query, truth + random.normal(0, 5.0, truth.shape) + off, 25.0)
    targets = builder.build(np.full(shape.classes, 1000.0))
    assert worst_fitted(part, index, targets, expected, share=0.01).tolist() == [part.numbers[3]]
    again = worst_fitted(part, index, targets, expected, share=0.5)
    assert part.numbers[3] in again
    assert len(again) == round(0.5 * len(part.numbers))
    assert part.only(again).numbers.tolist() == again.tolist()
    assert worst_fitted(part, index, targets, expected, share=1.0).tolist() == part.numbers.tolist()
