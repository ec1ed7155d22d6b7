"""Federated classifiers that privshare is compared with: what they learn, what they spend, and how they go on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from threadpoolctl import threadpool_limits

from client.site import open_site
from common.evaluation.figures import Population
from common.evaluation.utility import is_positive
from common.privacy.ledger import Charge, read_ledger
from common.privacy.noise import SeededNoise
from common.study import Study
from common.wire.messages import Reply, Request
from common.wire.packing import pack, pack_bins
from simulations.baselines.classifier_model import (
    GRADIENT_SCALE,
    HIDDEN,
    SCORES,
    WHOLE,
    Parameters,
    clipped_gradients,
    features_of,
)
from simulations.baselines.classifiers import (
    METHODS,
    NO_PRIVACY,
    ClassifierCoordinator,
    ClassifierSite,
    ClassifierVault,
    TrainedClassifier,
    adapt,
    recentred,
)
from simulations.federation import credentials_of
from tests.simulations.baselines.small import CPU, STUDY, WINDOWED, Federation, draw, federate, make_study, population

PRIVATE = ("fl-dp", "dp-lr")
NEARLY_NO_NOISE = make_study(privacy={"epsilon": 10_000}, unit={"max_records": 1}, rounds={"count": 40})


@dataclass(frozen=True)
class Finished:
    federation: Federation
    trained: TrainedClassifier


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """A finished run of a method over two sites; each is made once."""
    made: dict[str, Finished] = {}

    def run(method: str) -> Finished:
        if method not in made:
            federation = federate(tmp_path_factory.mktemp(method), method, [draw(300, 1), draw(200, 2)])
            made[method] = Finished(federation, federation.conduct())
        return made[method]

    return run


@pytest.fixture(scope="module")
def others() -> Population:
    """People that no site has."""
    return population(draw(500, 9))


def area(trained: TrainedClassifier, people: Population) -> float:
    return float(roc_auc_score(is_positive(people.table.records, trained.study), trained.predict(people.table)))


def charges(path: Path) -> list[Charge]:
    """Of the one study in a ledger, oldest first."""
    (found,) = read_ledger(path).charges.values()
    return list(found.values())


# What is learned


def test_federated_averaging_learns(tmp_path: Path, others: Population) -> None:
    trained = federate(tmp_path, "fl", [draw(300, 1), draw(200, 2)], make_study(rounds={"count": 10})).conduct()
    assert area(trained, others) > 0.8
    assert trained.epsilon is None
    assert set(trained.parameters) == {HIDDEN, SCORES}
    assert trained.n_parameters == sum(array.size for array in trained.parameters.values())


@pytest.mark.parametrize("method", PRIVATE)
def test_little_noise_hides_little(method: str, tmp_path: Path, others: Population) -> None:
    study = make_study(privacy={"epsilon": 500}, rounds={"count": 10})
    trained = federate(tmp_path, method, [draw(300, 1), draw(200, 2)], study).conduct()
    assert area(trained, others) > 0.85
    assert (HIDDEN in trained.parameters) == (method == "fl-dp")


def test_without_noise_descent_comes_to_the_logistic_regression_of_scikit_learn(
    tmp_path: Path, others: Population
) -> None:
    people = draw(400, 1, records=1)
    trained = federate(tmp_path, "dp-lr", [people], NEARLY_NO_NOISE).conduct()
    table = population(people).table
    rows, asked = (features_of(trained.coded(one), trained.shape.features) / WHOLE for one in (table, others.table))
    truth = is_positive(table.records, STUDY)
    best = LogisticRegression(C=100, max_iter=5000).fit(rows, truth)
    found, expected = logit(trained.predict(others.table)), best.decision_function(asked)
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    known = is_positive(others.table.records, STUDY)
    assert abs(area(trained, others) - roc_auc_score(known, expected)) < 0.01
    assert abs(log_loss(known, trained.predict(others.table)) - log_loss(known, best.predict_proba(asked)[:, 1])) < 0.02


def test_windows_are_learned_from(tmp_path: Path) -> None:
    tables = draw(250, 1, records=1, study=WINDOWED)
    tables["table"]["amount"], tables["table"]["channel"] = "5.0", "web"  # what is left is the pulse
    tables["table"].loc[:1, ["amount", "channel"]] = "9.0", "desk"
    study = WINDOWED.with_overrides(rounds={"count": 12})
    trained = federate(tmp_path, "fl", [tables], study).conduct()
    others = draw(250, 3, records=1, study=WINDOWED)
    others["table"]["amount"], others["table"]["channel"] = "5.0", "web"
    assert area(trained, population(others, WINDOWED)) > 0.9


# What a trained classifier says


def test_a_prediction_does_not_look_at_the_label_or_at_other_rows(
    finished: Callable[[str], Finished], others: Population
) -> None:
    trained, table = finished("fl").trained, others.table
    chances = trained.predict(table)
    assert chances.shape == (len(table.records),)
    assert ((chances > 0) & (chances < 1)).all()
    outcome = table.records["outcome"]
    turned = table.records.assign(outcome=outcome.cat.rename_categories({"good": "bad", "bad": "good"}))
    turned["outcome"] = turned["outcome"].cat.reorder_categories(["good", "bad"])
    assert (turned["outcome"] != outcome).all()
    assert np.array_equal(trained.predict(replace(table, records=turned)), chances)
    some = np.array([40, 3, 3])
    assert np.allclose(trained.predict(table.take(some)), chances[some], rtol=1e-12)


def test_the_likelihood_is_that_of_the_own_label(finished: Callable[[str], Finished], others: Population) -> None:
    trained = finished("fl").trained
    chances, truth = trained.predict(others.table), is_positive(others.table.records, STUDY)
    assert np.allclose(trained.log_likelihood(others.table), np.log(np.where(truth, chances, 1 - chances)))


def test_the_mean_probability_is_the_share_of_the_positive_class(
    finished: Callable[[str], Finished], others: Population
) -> None:
    trained = finished("fl").trained
    shift = np.append(np.zeros(len(trained.parameters[SCORES]) - 1), -7).astype(np.float32)
    wrong = {**trained.parameters, SCORES: trained.parameters[SCORES] + shift}
    assert replace(trained, parameters=wrong).predict(others.table).mean() < 0.01
    right = recentred(wrong, trained.bins, trained.shape.features, shares=np.array([0.7, 0.3]), positive=1, seed=0)
    assert abs(replace(trained, parameters=right).predict(others.table).mean() - 0.3) < 0.1
    assert np.array_equal(right[HIDDEN], trained.parameters[HIDDEN])
    assert np.array_equal(right[SCORES][:-1], trained.parameters[SCORES][:-1])


@pytest.mark.parametrize("method", METHODS)
def test_the_share_of_the_positive_class_is_what_the_one_way_tables_say(
    finished: Callable[[str], Finished], method: str
) -> None:
    share = finished(method).trained.positive_share
    assert 0 < share < 1
    if method == "fl":
        assert abs(share - 0.3) < 0.05


# What is spent


@pytest.mark.parametrize("method", PRIVATE)
def test_every_site_charges_every_gradient_and_ends_at_its_bound(
    finished: Callable[[str], Finished], method: str
) -> None:
    run = finished(method)
    study, state = run.federation.study, run.trained.state
    assert (run.trained.epsilon, run.trained.delta) == (1, 1e-5)
    assert list(state.releases) == ["one_way", "gradient-1", "gradient-2", "gradient-3"]
    for path in run.federation.ledgers:
        own = charges(path)
        assert [charge.request for charge in own] == [f"run/{name}" for name in state.releases]
        assert [charge.event for charge in own] == state.events[path.stem]
        events = [charge.event for charge in own]
        assert {event.account for event in events} == {"train"}
        assert all(
            (event.squared_sensitivity, event.scale, event.cells)
            == (GRADIENT_SCALE**2, GRADIENT_SCALE, run.trained.n_parameters)
            for event in events[1:]
        )
        spent = sum(Fraction(event.squared_sensitivity) / Fraction(event.noise_stddev) ** 2 for event in events)
        bound = state.accounts[path.stem].bound
        assert Fraction(0.999 * bound) < spent <= Fraction(bound)
        assert study.accountant.epsilon(spent=float(spent), delta=1e-5) <= 1


def test_averaging_is_charged_for_its_bins_alone_and_claims_nothing(finished: Callable[[str], Finished]) -> None:
    run = finished("fl")
    assert [charge.request for path in run.federation.ledgers for charge in charges(path)] == ["run/one_way"] * 2
    assert run.federation.study.privacy.epsilon == NO_PRIVACY


@pytest.mark.parametrize("method", PRIVATE)
def test_a_spend_is_on_disk_before_its_noise_is_drawn(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = federate(tmp_path, method, [draw(60, 1)])
    drawn = []
    original = SeededNoise.draw

    def watched(noise: SeededNoise, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        (ledger,) = federation.ledgers
        last = charges(ledger)[-1]
        drawn.append((last.request, last.event.noise_stddev) == (context, noise_stddev))
        return original(noise, size, noise_stddev=noise_stddev, context=context)

    monkeypatch.setattr(SeededNoise, "draw", watched)
    federation.conduct()
    assert drawn == [True] * 4


def test_a_gradient_that_is_longer_than_it_may_be_is_neither_charged_nor_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longer(*arguments: Any) -> Any:
        found = clipped_gradients(*arguments)
        return replace(found, factors=tuple((left, right * 64) for left, right in found.factors))

    monkeypatch.setattr("simulations.baselines.classifiers.clipped_gradients", longer)
    federation = federate(tmp_path, "dp-lr", [draw(60, 1)])
    with pytest.raises(Exception, match="INTERNAL"):
        federation.conduct()
    assert [charge.request for path in federation.ledgers for charge in charges(path)] == ["run/one_way"]


def test_a_sum_is_of_one_record_of_every_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(shape: Any, parameters: Parameters, features: np.ndarray, positive: np.ndarray) -> Any:
        sizes.append(len(features))
        return clipped_gradients(shape, parameters, features, positive)

    monkeypatch.setattr("simulations.baselines.classifiers.clipped_gradients", counted)
    monkeypatch.setattr("simulations.baselines.classifiers._CHUNK", 40)
    federate(tmp_path, "dp-lr", [draw(100, 1)]).conduct()
    assert sizes == [40, 40, 20] * 3


# Who refuses


def request(federation: Federation, kind: str, *, width: int = 32, **changes: Any) -> Request:
    """As a coordinator would send it, over one bin a value."""
    site = open_site(federation.sites[0].settings, site=ClassifierSite)
    bins = [np.arange(grid.n_cells, dtype=np.int64) for grid in site._grids]
    cells = sum(len(bin_of) for bin_of in bins) + 1
    parameters = {SCORES: np.zeros(cells, np.float32)}
    if width:
        parameters = {HIDDEN: np.zeros((cells, width), np.float32), SCORES: np.zeros(width + 1, np.float32)}
    arrays = {**pack_bins(bins), **pack("classifier.", {**parameters, **changes})}
    options = {"share": 0.1, "steps": 1, "learning_rates": [0.1, 0.1], "seed": 0}
    return Request(kind, federation.study.digest(), "other run", "first", options, arrays)


def answer(federation: Federation, asked: Request) -> str | None:
    site = open_site(federation.sites[0].settings, site=ClassifierSite)
    return Reply.decode(site.handle(asked.encode())).refused


def test_a_site_averages_only_where_the_study_promises_nothing(tmp_path: Path) -> None:
    averaging, private = (federate(tmp_path / method, method, [draw(30, 1)]) for method in ("fl", "fl-dp"))
    assert answer(averaging, request(averaging, "train")) is None
    assert answer(private, request(private, "train")) == "POLICY_REFUSED"


@pytest.mark.parametrize("kind", ["train", "critic"])
@pytest.mark.parametrize(
    "changes",
    [{"width": 31}, {"more": np.zeros(1, np.float32)}, {SCORES: np.zeros(33)}],
    ids=["narrower", "more layers", "another type"],
)
def test_a_classifier_that_does_not_fit_the_study_is_refused(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    federation = federate(tmp_path, "fl", [draw(30, 1)])
    assert answer(federation, request(federation, kind, **changes)) == "POLICY_REFUSED"
    assert not charges_of_all(federation)


def charges_of_all(federation: Federation) -> list[Charge]:
    return [
        charge for path in federation.ledgers for own in read_ledger(path).charges.values() for charge in own.values()
    ]


def test_a_reply_that_is_no_classifier_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "simulations.baselines.classifiers.train_locally", lambda *_, **__: {SCORES: np.zeros(3, np.float32)}
    )
    with pytest.raises(Exception, match="site_0: a classifier that does not fit the study"):
        federate(tmp_path, "fl", [draw(60, 1)]).conduct()


@pytest.mark.parametrize("study", [STUDY, adapt(STUDY, "fl"), adapt(STUDY, "dp-lr")], ids=["none", "fl", "dp-lr"])
def test_a_study_that_was_not_adapted_to_the_method_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapted to fl-dp"):
        ClassifierCoordinator(
            study,
            method="fl-dp",
            folder=tmp_path,
            run="run",
            seed=0,
            credentials=credentials_of([], seed=0),
            device=CPU,
            on_step=lambda _: None,
        )


# How a study is adapted


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("study", [STUDY, WINDOWED, make_study(gates={"monitor_auc": 0.7, "misfit": 2.0})])
def test_a_study_keeps_its_table_its_rounds_and_its_budget(study: Study, method: str) -> None:
    adapted = adapt(study, method)
    assert adapt(adapted, method) == adapted
    kept = ("unit", "label", "columns", "windows")
    assert [getattr(adapted, name) for name in kept] == [getattr(study, name) for name in kept]
    assert (adapted.rounds.count, adapted.rounds.trainers) == (study.rounds.count, study.rounds.trainers)
    assert adapted.privacy.delta == study.privacy.delta
    assert adapted.privacy.epsilon == (NO_PRIVACY if method == "fl" else study.privacy.epsilon)
    assert adapted.privacy.holdout == 0
    assert adapted.critic.sampling == 1
    assert (adapted.gates.monitor_auc, adapted.gates.misfit) == (None, None)


def test_methods_have_studies_of_their_own() -> None:
    assert len({adapt(STUDY, method).digest() for method in METHODS}) == len(METHODS)
    with pytest.raises(ValueError, match="method=gan"):
        adapt(STUDY, "gan")


# Averaging


def test_the_mean_is_weighted_by_the_units_of_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(parameters: Parameters, features: np.ndarray, *_: Any, **__: Any) -> dict[str, np.ndarray]:
        return {name: np.full_like(array, float(len(features) > 150)) for name, array in parameters.items()}

    monkeypatch.setattr("simulations.baselines.classifiers.train_locally", said)
    study = make_study(unit={"max_records": 1}, rounds={"count": 1})
    large, small = draw(300, 1, records=1), draw(100, 2, records=1)
    trained = federate(tmp_path, "fl", [large, small], study).conduct()
    assert np.allclose(trained.parameters[SCORES], 0.75, atol=0.01)


def test_sites_take_turns(tmp_path: Path) -> None:
    study = make_study(rounds={"count": 3, "trainers": 2})
    trained = federate(tmp_path, "fl", [draw(40, seed) for seed in range(3)], study).conduct()
    rounds = [line for line in trained.state.history if line["step"] == "round"]
    assert [line["trainers"] for line in rounds] == [["site_0", "site_1"], ["site_0", "site_2"], ["site_1", "site_2"]]


# Interrupted, then resumed


@pytest.mark.parametrize(("method", "step"), [("fl", "round"), ("fl-dp", "gradient-2"), ("dp-lr", "round")])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    method: str, step: str, finished: Callable[[str], Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished(method)
    federation = federate(tmp_path, method, [draw(300, 1), draw(200, 2)])
    with pytest.raises(KeyboardInterrupt):
        federation.conduct(stop_at=step)
    asked: list[str] = []
    handle = ClassifierSite.handle

    def recorded(site: ClassifierSite, body: bytes) -> bytes:
        asked.append(Request.decode(body).name)
        return handle(site, body)

    monkeypatch.setattr(ClassifierSite, "handle", recorded)
    trained = federation.conduct()
    assert not {"one_way", "gradient-1", "train-1"} & set(asked)
    assert all(np.array_equal(trained.parameters[name], array) for name, array in whole.trained.parameters.items())
    assert [line["step"] for line in trained.state.history] == [line["step"] for line in whole.trained.state.history]
    for path, other in zip(federation.ledgers, whole.federation.ledgers, strict=True):
        assert charges(path) == charges(other)


def test_an_order_that_comes_again_gets_the_same_bytes(tmp_path: Path) -> None:
    federation = federate(tmp_path, "dp-lr", [draw(60, 1)])
    site = open_site(federation.sites[0].settings, noise=SeededNoise(b"a"), site=ClassifierSite)
    asked = request(federation, "critic", width=0).encode()
    assert isinstance(site, ClassifierSite)
    assert isinstance(site._vault, ClassifierVault)
    assert site.handle(asked) == site.handle(asked)
    assert len(charges_of_all(federation)) == 1


def test_another_seed_is_another_run(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    other = federate(tmp_path, "fl", [draw(300, 1), draw(200, 2)]).conduct(seed=1)
    assert not np.array_equal(other.parameters[HIDDEN], finished("fl").trained.parameters[HIDDEN])
