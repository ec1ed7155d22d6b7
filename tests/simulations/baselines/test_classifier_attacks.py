"""Attacks on released classifiers: they find what was memorised, and nothing where nothing was."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from common.data.binning import identity_binning
from common.data.encoding import make_grids
from common.data.histograms import Histogram
from common.evaluation.attacks.games import STATISTICS
from common.evaluation.figures import Population
from common.evaluation.utility import is_positive
from common.models.releases import Bins
from server.run_state import RunState
from simulations.baselines.classifier_attacks import attack_classifier, infer_secrets, invert_classifier
from simulations.baselines.classifier_model import SCORES, features_of, initialise, train_locally
from simulations.baselines.classifiers import TrainedClassifier, adapt
from tests.simulations.baselines.small import CPU, STUDY, WINDOWED, draw, population

NOBODY = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def people(units: int, seed: int, *, outcome: str | None = None, records: int = 2) -> Population:
    """Of units whose outcome is random: whoever foretells it has seen it. Or as it is, or as a column says."""
    tables = draw(units, seed, records=records)
    table = tables["table"]
    if outcome is None:
        random = np.random.default_rng([seed, 5])
        table["outcome"] = random.choice(["good", "bad"], len(table))
    elif outcome == "channel":
        random = np.random.default_rng([seed, 6])
        table["channel"] = random.choice(["desk", "phone", "web"], len(table), p=[0.5, 0.3, 0.2])
        table["outcome"] = np.where(table["channel"] == "phone", "bad", "good")
    return population(tables)


def learned(of: Population, method: str = "fl", *, passes: int = 300, rate: float = 0.02) -> TrainedClassifier:
    """A classifier over a bin a cell, trained on rows until it knows them."""
    study = adapt(STUDY, method)
    grids = make_grids(study.measured)
    histograms = tuple(
        Histogram(counts, np.eye(grid.n_cells), counts) for grid in grids for counts in [np.ones((2, grid.n_cells))]
    )
    bins = Bins(tuple(map(identity_binning, histograms)), histograms, len(grids), np.zeros((0, 2, 0)))
    empty = TrainedClassifier(method, study, RunState("run", 0, study.digest()), bins, {}, 0.5)
    width = 0 if method == "dp-lr" else study.critic.width
    shape = replace(empty.shape, width=width)
    truth = is_positive(of.table.records, study)
    parameters = train_locally(
        initialise(shape, positive_share=0.5, seed=0),
        features_of(empty.coded(of.table), shape.features),
        truth,
        passes=passes,
        rates=(rate, 0.0),
        seed=0,
        device=CPU,
    )
    return replace(empty, parameters=parameters)


@pytest.fixture(scope="module")
def memorised() -> tuple[TrainedClassifier, Population]:
    members = people(150, 1)
    return learned(members), members


# Membership


def test_a_classifier_that_knows_its_rows_by_heart_gives_them_away(
    memorised: tuple[TrainedClassifier, Population],
) -> None:
    trained, members = memorised
    found = attack_classifier(trained, members, people(150, 2), people(150, 3), groups={}, seed=0, most=1000)
    assert set(found) == {"loss", "calibrated_loss"}
    for attack in found.values():
        area = attack.populations["everyone"]["auc"]
        assert area.low is not None
        assert area.low > 0.6
        assert area.ceiling is None


def test_people_who_were_not_trained_on_are_not_told_apart(memorised: tuple[TrainedClassifier, Population]) -> None:
    trained, _ = memorised
    found = attack_classifier(trained, people(400, 4), people(400, 5), people(150, 3), groups={}, seed=0, most=300)
    for attack in found.values():
        area = attack.populations["everyone"]["auc"]
        assert area.low is not None
        assert area.high is not None
        assert area.low < 0.5 < area.high
        assert area.n == 600


def test_calibration_takes_out_what_everybody_can_foretell() -> None:
    # Half of the people have an outcome that a column tells; a classifier is sure of them, members or not.
    members, controls, reference = (people(200, seed, outcome="as it is") for seed in (1, 2, 3))
    trained = learned(members)
    found = attack_classifier(trained, members, controls, reference, groups={}, seed=0, most=1000)
    plain, calibrated = (found[name].populations["everyone"]["auc"].value for name in ("loss", "calibrated_loss"))
    assert plain is not None
    assert calibrated is not None
    assert calibrated > plain > 0.5


def test_the_score_of_a_unit_is_the_highest_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = learned(people(30, 1), passes=1)
    members, controls = people(40, 2), people(40, 3)
    seen = []

    def noted(inside: np.ndarray, outside: np.ndarray, **_: object) -> None:
        seen.append((inside, outside))

    monkeypatch.setattr("simulations.baselines.classifier_attacks.assess", noted)
    attack_classifier(trained, members, controls, people(40, 4), groups={}, seed=0, most=100)
    for side, scores in zip((members, controls), seen[0], strict=True):
        rows = pd.Series(trained.log_likelihood(side.table))
        assert scores.tolist() == rows.groupby(side.units).max().tolist()


def test_groups_follow_their_units_and_the_ceiling_is_that_of_the_claim() -> None:
    trained = learned(people(30, 1), "dp-lr", passes=1)
    members, controls = people(100, 2), people(80, 3)
    masks = (np.arange(100) < 60, np.arange(80) < 40)
    found = attack_classifier(trained, members, controls, people(40, 4), groups={"some": masks}, seed=0, most=70)
    chosen = found["loss"].populations["some"]["auc"].n
    assert chosen is not None
    assert 35 < chosen < 100
    assert trained.epsilon == 1
    assert found["loss"].populations["everyone"]["advantage"].ceiling == pytest.approx(np.tanh(0.5), abs=1e-3)


# Attributes


def test_an_attribute_that_follows_from_the_label_is_guessed_of_everybody() -> None:
    members, controls, reference = (people(300, seed, outcome="channel") for seed in (1, 2, 3))
    trained = learned(members, passes=40)
    found = infer_secrets(trained, members, controls, reference, seed=0, most=300)
    assert list(found) == ["outcome", "channel", "amount"]
    channel = found["channel"]
    assert channel.controls.value is not None
    assert channel.naive is not None
    assert channel.naive.value is not None
    # Phone is told by the label; of desk and web the likelier is guessed.
    assert 0.7 < channel.controls.value < 0.9
    assert 0.4 < channel.naive.value < 0.6
    assert channel.residual.low is not None
    assert channel.residual.low < 0 < (channel.residual.high or 0)
    assert found["outcome"].controls.value == 1
    assert found["amount"].controls.value is not None


def test_an_attribute_of_members_alone_leaves_a_residual(memorised: tuple[TrainedClassifier, Population]) -> None:
    trained, members = memorised
    found = infer_secrets(trained, members, people(150, 2), people(150, 3), seed=0, most=1000, secrets=["outcome"])
    assert found["outcome"].residual.low is not None
    assert found["outcome"].residual.low > 0.2


@pytest.mark.parametrize("secret", ["channel", "amount", "visits"])
def test_no_guess_looks_at_the_secret(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = learned(people(60, 1, outcome="channel"), passes=5)
    side, reference = people(50, 2, outcome="channel"), people(80, 3, outcome="channel")
    guesses = []

    def noted(self: object, guessed: np.ndarray, _: object) -> np.ndarray:
        guesses.append(guessed.copy())
        return np.zeros(len(guessed), dtype=bool)

    monkeypatch.setattr("simulations.baselines.classifier_attacks._Secret.is_right", noted)
    table = side.table
    turned = table.records.assign(**{secret: table.records[secret].to_numpy()[::-1]})
    turned[secret] = turned[secret].astype(table.records[secret].dtype)
    other = replace(side, table=replace(table, records=turned))
    for people_asked in (side, other):
        infer_secrets(trained, people_asked, people_asked, reference, seed=0, most=100, secrets=[secret])
    first, again = guesses[0], guesses[3]
    assert np.array_equal(first, again)


def test_an_unknown_secret_is_refused() -> None:
    trained, side = learned(people(10, 1), passes=1), people(10, 2)
    with pytest.raises(ValueError, match="nothing of the kind"):
        infer_secrets(trained, side, side, side, seed=0, most=10, secrets=["nothing of the kind"])


# Inversion


def test_what_the_label_tells_is_reconstructed_of_everybody() -> None:
    members, controls, reference = (people(400, seed, outcome="channel") for seed in (1, 2, 3))
    found = invert_classifier(learned(members, passes=40), members, controls, reference, seed=0, most=400)
    assert (found.known, found.unknown) == (1, 2)
    assert found.members.value is not None
    assert found.naive.value is not None
    assert found.members.value > found.naive.value + 0.05
    assert found.excess.low is not None
    assert found.excess.low < 0
    assert found.excess.chance == 0


def test_what_is_not_known_of_a_person_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = learned(people(60, 1, outcome="channel"), passes=5)
    side, reference = people(50, 2, outcome="channel", records=1), people(80, 3, outcome="channel")
    seen = []

    def noted(secrets: object, guesses: np.ndarray, table: object, given: np.ndarray) -> np.ndarray:
        seen.append((guesses.copy(), given))
        return np.zeros(len(guesses))

    monkeypatch.setattr("simulations.baselines.classifier_attacks._share_right", noted)
    invert_classifier(trained, side, side, reference, seed=0, most=100)
    records = side.table.records.copy()
    records["visits"] = records["visits"].to_numpy()[::-1]
    records["visits"] = records["visits"].astype(side.table.records["visits"].dtype)
    other = replace(side, table=replace(side.table, records=records))
    invert_classifier(trained, other, other, reference, seed=0, most=100)
    # Where visits are not known, all guesses are the same whatever the visits are.
    (guesses, given), (again, _) = seen[1], seen[5]
    hidden = ~given[:, 1]
    assert 0 < hidden.sum() < len(hidden)
    assert np.array_equal(guesses[hidden], again[hidden])


# Nothing to attack, and repetition


def test_without_rows_nothing_is_measured_and_a_reason_given() -> None:
    trained, side = learned(people(20, 1), passes=1), people(20, 2)
    nobody = side.take(NOBODY)
    for sides in ((nobody, side, side), (side, nobody, side), (side, side, nobody)):
        attacks = attack_classifier(trained, *sides, groups={}, seed=0, most=10)
        for attack in attacks.values():
            assert all(attack.populations["everyone"][name].reason for name in STATISTICS)
        assert infer_secrets(trained, *sides, seed=0, most=10)["channel"].residual.reason
        assert invert_classifier(trained, *sides, seed=0, most=10).excess.reason


def test_attacks_repeat_themselves(memorised: tuple[TrainedClassifier, Population]) -> None:
    trained, members = memorised
    first, again = (
        (
            attack_classifier(trained, members, members, members, groups={}, seed=3, most=50),
            infer_secrets(trained, members, members, members, seed=3, most=50),
            invert_classifier(trained, members, members, members, seed=3, most=50),
        )
        for _ in range(2)
    )
    assert first == again


def test_windows_are_known_and_do_no_harm() -> None:
    study = adapt(WINDOWED, "fl")
    grids, channels = make_grids(study.measured), make_grids(study.channels)
    histograms = tuple(
        Histogram(counts, np.eye(grid.n_cells), counts)
        for grid in (*grids, *channels)
        for counts in [np.ones((2, grid.n_cells))]
    )
    bins = Bins(tuple(map(identity_binning, histograms)), histograms, len(grids), np.zeros((2, 2, 0)))
    empty = TrainedClassifier(
        "fl", study, RunState("run", 0, study.digest()), bins, {SCORES: np.zeros(0, np.float32)}, 0.3
    )
    shape = empty.shape
    trained = replace(empty, parameters=initialise(shape, positive_share=0.3, seed=0))
    sides = [population(draw(40, seed, records=1, study=WINDOWED), WINDOWED) for seed in (1, 2, 3)]
    assert attack_classifier(trained, *sides, groups={}, seed=0, most=40)["loss"].populations["everyone"]["auc"].value
    assert infer_secrets(trained, *sides, seed=0, most=40)["channel"].members.value is not None
    assert invert_classifier(trained, *sides, seed=0, most=40).members.value is not None
