"""The federated GAN that privshare is compared with: what it learns, how it is averaged, who refuses to train it."""

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from client.records import parse_text, read_windows
from client.simulated_site import SiteFolder, make_site_folder
from client.site import Site
from common.data.queries import Coded
from common.errors import PolicyError, ProtocolError
from common.models.generator import GeneratorShape
from common.models.sequences import SequenceShape
from common.models.training import Stretch
from common.study import Study
from common.synthesis.rows import tables_of
from common.wire.messages import Reply, Request
from common.wire.packing import CRITIC, GENERATOR, pack
from simulations.baselines.gan import (
    GanCoordinator,
    GanSite,
    TrainedGan,
    adapt,
    check_networks,
    weighted_mean,
)
from simulations.baselines.gan_model import arrays_of, draw, initialise, load_arrays, train
from simulations.experiment import Scenario, choose, divide
from simulations.federation import Engine, credentials_of, run_federation

CPU = torch.device("cpu")
ENGINE = Engine("process", "cpu", 1, noise_seed=7)
ROUNDS = 3
UNITS = {Scenario.BANK: 1000, Scenario.ACCOUNTS: 200, Scenario.ICU: 200}


@dataclass(frozen=True)
class Member:
    """A simulated federation of two sites: its study, and the CSV text of their tables."""

    study: Study
    tables: dict[str, dict[str, str]]


@cache
def federation(scenario: Scenario) -> Member:
    run = choose(scenario=scenario, study=None, data=None, series=None, units=UNITS[scenario], sites=4, seed=100)
    study = adapt(run.study, rounds=ROUNDS, local_steps=2 if scenario is Scenario.BANK else 1)
    sites = divide(run).sites
    # The largest and the smallest.
    return Member(study, {name: dict(sites[name]) for name in ("site_01", "site_04")})


def folders(folder: Path, member: Member) -> list[SiteFolder]:
    """The sites of a run that lives in `folder`."""
    (folder / "run").mkdir(parents=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(member.study.model_dump(mode="json", by_alias=True), sort_keys=False))
    return [
        make_site_folder(
            name,
            path,
            member.study,
            tables,
            private=folder / "private",
            kept=folder / "run",
            seed=0,
            peers=[peer for peer in member.tables if peer != name],
        )
        for name, tables in member.tables.items()
    ]


def conduct(
    folder: Path,
    member: Member,
    sites: list[SiteFolder],
    *,
    site: type[Site] = GanSite,
    on_step: Callable[[dict[str, Any]], None] = lambda _: None,
) -> TrainedGan:
    coordinator = GanCoordinator(
        member.study,
        folder=folder / "run",
        run="gan",
        seed=0,
        credentials=credentials_of(list(member.tables), seed=0),
        device=CPU,
        on_step=on_step,
    )
    results: list[TrainedGan] = []
    run_federation(sites, lambda exchange: results.append(coordinator.run(exchange)), ENGINE, site=site)
    return results[0]


class Watched(GanSite):
    """Keeps what it answers to requests for training."""

    answers: list[tuple[Request, Reply]] = []  # noqa: RUF012 (sites are made by the engine, which knows the class alone)

    def _train(self, request: Request, digest: str) -> bytes:
        body = super()._train(request, digest)
        self.answers.append((request, Reply.decode(body)))
        return body


@dataclass(frozen=True)
class Finished:
    trained: TrainedGan
    steps: list[dict[str, Any]]
    answers: list[tuple[Request, Reply]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Scenario], Finished]:
    """A whole run of a scenario, made once."""

    @cache
    def run(scenario: Scenario) -> Finished:
        folder, member = tmp_path_factory.mktemp(scenario), federation(scenario)
        Watched.answers = []
        steps: list[dict[str, Any]] = []
        trained = conduct(folder, member, folders(folder, member), site=Watched, on_step=steps.append)
        return Finished(trained, steps, Watched.answers)

    return run


RUN = Callable[[Scenario], Finished]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# --- the networks


SHAPE = GeneratorShape(sizes=(2, 3), classes=2, latent=1, width=8, blocks=1)
STEPS = SequenceShape(
    kind="states", steps=5, blocks=((0, 5),), sizes=(2, 3), missing=(False, False), ordered=(False, False), states=2
)
WINDOWED = replace(SHAPE, sizes=(2, 5), sequence=STEPS, length_column=1, fewest=1)


def test_the_gan_learns_what_columns_say_of_the_label_and_rows_count_by_weight() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 2000)
    third = random.integers(0, 3, 2000)
    weights = np.array([0.8, 0.1, 0.1])[third]
    gan = initialise(SHAPE, seed=0)
    train(gan, Coded(labels, np.column_stack([labels, third])), weights, Stretch(150, 2e-3, 0.0, 64, 3), CPU)
    asked = np.repeat([0, 1], 1000)
    records, windows = draw(gan.generator, asked, seed=1, device=CPU)
    assert windows is None
    assert (records[:, 0] == asked).mean() > 0.95
    assert (records[:, 1] == 0).mean() == pytest.approx(0.8, abs=0.12)


def test_the_gan_learns_lengths_and_what_goes_on_over_time() -> None:
    random = np.random.default_rng(0)
    course = np.array([0, 1, 2, 0, 1])
    labels, lengths = random.integers(0, 2, 1000), random.choice([2, 5], 1000)
    steps = np.stack([np.repeat(labels[:, None], 5, axis=1), np.tile(course, (1000, 1))], axis=2)
    steps[np.arange(5) >= lengths[:, None]] = -1
    real = Coded(labels, np.column_stack([labels, lengths - 1]), steps, lengths)
    gan = initialise(WINDOWED, seed=0)
    train(gan, real, np.ones(1000), Stretch(100, 2e-3, 0.0, 32, 3), CPU)
    asked = np.repeat([0, 1], 200)
    records, windows = draw(gan.generator, asked, seed=1, device=CPU)
    assert windows is not None
    assert np.isin(records[:, 1] + 1, [2, 5]).mean() > 0.9
    held = windows[:, :, 0] >= 0
    assert (windows[:, :, 0] == asked[:, None])[held].mean() > 0.9
    assert (windows[:, :, 1] == course)[held].mean() > 0.9


def test_windows_end_with_the_number_of_steps_that_the_record_says() -> None:
    records, windows = draw(initialise(WINDOWED, seed=0).generator, np.zeros(300, dtype=np.int64), seed=1, device=CPU)
    assert windows is not None
    assert len(np.unique(records[:, 1])) == 5
    assert np.array_equal(windows[:, :, 0] >= 0, np.arange(5) < records[:, 1:] + 1)
    assert np.array_equal(windows[:, :, 0] >= 0, windows[:, :, 1] >= 0)


@pytest.mark.parametrize("shape", [SHAPE, WINDOWED])
def test_no_label_draws_no_unit(shape: GeneratorShape) -> None:
    records, windows = draw(initialise(shape, seed=0).generator, np.zeros(0, dtype=np.int64), seed=1, device=CPU)
    assert records.shape == (0, 2)
    assert windows is None if shape is SHAPE else windows is not None and windows.shape == (0, 5, 2)


def test_a_site_without_rows_sends_back_what_it_was_sent() -> None:
    gan = initialise(SHAPE, seed=0)
    before = arrays_of(gan)
    train(gan, Coded(np.zeros(0, np.int64), np.zeros((0, 2), np.int64)), np.zeros(0), Stretch(3, 0.1, 0.1, 8, 0), CPU)
    assert same(arrays_of(gan), before)


def test_no_parameter_moves_farther_than_the_coordinator_allows() -> None:
    gan = initialise(SHAPE, seed=0)
    before = arrays_of(gan)
    real = Coded(np.array([0, 1]), np.array([[0, 2], [1, 1]]))
    train(gan, real, np.ones(2), Stretch(40, 0.01, 0.01, 16, 0), CPU)
    reply = Reply("north", {"units": 2.0}, arrays_of(gan))
    check_networks("north", reply, sent=before, reach=4.0 * 40 * 0.01)
    assert not same(arrays_of(gan), before)


def test_training_and_drawing_leave_the_global_random_state_alone() -> None:
    before, other = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 (the global one)
    gan = initialise(WINDOWED, seed=0)
    real = Coded(np.array([0, 1]), np.array([[0, 4], [1, 4]]), np.zeros((2, 5, 2), np.int64))
    train(gan, real, np.ones(2), Stretch(2, 0.01, 0.0, 8, 0), CPU)
    draw(gan.generator, np.array([0, 1]), seed=0, device=CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == other  # noqa: NPY002


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.popitem(),
        lambda arrays: arrays.update(more=np.zeros(1, np.float32)),
        lambda arrays: arrays.update({next(iter(arrays)): np.zeros((1, 1), np.float32)}),
        lambda arrays: arrays.update({name: array.astype(np.float64) for name, array in arrays.items()}),
    ],
)
def test_other_parameters_than_the_networks_own_are_refused(change: Callable[[dict[str, np.ndarray]], object]) -> None:
    gan = initialise(SHAPE, seed=0)
    arrays = arrays_of(gan)
    change(arrays)
    with pytest.raises(ValueError, match="other parameters"):
        load_arrays(gan, arrays)


# --- averaging


def test_networks_are_averaged_by_weight() -> None:
    one, other = {"a": np.float32([0, 4])}, {"a": np.float32([4, 0])}
    mean = weighted_mean([one, other], [1.0, 3.0])
    assert mean["a"].dtype == np.float32
    assert mean["a"].tolist() == [3.0, 1.0]


def test_sites_that_weigh_nothing_have_no_mean() -> None:
    with pytest.raises(ProtocolError, match="none has a unit"):
        weighted_mean([{"a": np.float32([1])}], [0.0])


def test_a_round_ends_in_the_mean_of_what_the_sites_sent_by_what_their_units_weigh(finished: RUN) -> None:
    done = finished(Scenario.BANK)
    last = [reply for request, reply in done.answers if request.name == f"train-{ROUNDS}"]
    weights = [float(reply.facts["units"]) for reply in last]
    assert weights[0] != pytest.approx(weights[1], rel=0.05)
    state = done.trained.state
    expected = weighted_mean([reply.arrays for reply in last], weights)
    assert same({**pack(GENERATOR, state.generator), **pack(CRITIC, state.critics)}, expected)


def test_the_next_round_begins_with_the_mean_and_both_sites_draw_their_own(finished: RUN) -> None:
    answers = finished(Scenario.BANK).answers
    first = [reply for request, reply in answers if request.name == "train-1"]
    second = [request for request, _ in answers if request.name == "train-2"]
    mean = weighted_mean([reply.arrays for reply in first], [float(reply.facts["units"]) for reply in first])
    assert all(np.array_equal(request.arrays[name], array) for request in second for name, array in mean.items())
    assert len({request.options["seed"] for request, _ in answers}) == len(answers)


def test_the_units_of_all_sites_weigh_as_much_as_there_are(finished: RUN) -> None:
    done = finished(Scenario.BANK)
    weights = [float(reply.facts["units"]) for request, reply in done.answers if request.name == "train-1"]
    units = {row.split(",")[0] for one in federation(Scenario.BANK).tables.values() for row in one["table"].split("\n")}
    # A header and the end of the text are among them.
    assert sum(weights) == pytest.approx(len(units) - 2, rel=0.01)
    assert done.trained.label_counts.sum() == pytest.approx(len(units) - 2, rel=0.01)
    assert done.trained.rows == round(float(done.trained.label_counts.sum()))


def test_a_site_weighs_half_its_share_of_each_class_however_rare(finished: RUN) -> None:
    weights = [float(reply.facts["units"]) for _, reply in finished(Scenario.ACCOUNTS).answers[:2]]
    tables = federation(Scenario.ACCOUNTS).tables.values()
    counts = pd.DataFrame([pd.read_csv(io.StringIO(one["table"]))["risk"].value_counts() for one in tables])
    of_class = counts / counts.sum(axis=0)
    expected = of_class.mean(axis=1) * counts.to_numpy().sum()
    assert weights == pytest.approx(expected.tolist(), rel=0.01)
    assert weights != pytest.approx(counts.sum(axis=1).tolist(), rel=0.05)


def test_the_published_generator_is_a_mean_over_rounds(finished: RUN) -> None:
    done = finished(Scenario.BANK)
    by_round = itertools.groupby(done.answers, key=lambda answer: answer[0].name)
    means = [
        weighted_mean([one.arrays for one in replies], [float(one.facts["units"]) for one in replies])
        for replies in ([reply for _, reply in group] for _, group in by_round)
    ]
    assert len(means) == ROUNDS
    for name, array in arrays_of(done.trained.generator).items():
        # So few rounds are averaged plainly.
        expected = np.mean([mean[GENERATOR + name] for mean in means], axis=0)
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-6)


# --- runs


@pytest.mark.parametrize("scenario", UNITS)
def test_a_run_trains_and_records_its_rounds(finished: RUN, scenario: Scenario) -> None:
    done = finished(scenario)
    assert [step["step"] for step in done.steps] == ["one_way", *["round"] * ROUNDS]
    assert done.trained.state.rounds_done == ROUNDS
    start = next(request for request, _ in done.answers if request.name == "train-1").arrays
    assert not np.array_equal(done.trained.state.generator["heads.weight"], start["generator.heads.weight"])
    assert [step["trainers"] for step in done.steps[1:]] == [sorted(federation(scenario).tables)] * ROUNDS


@pytest.mark.parametrize("scenario", UNITS)
def test_rows_obey_the_schema_and_label_shares_are_as_counted(finished: RUN, scenario: Scenario) -> None:
    trained = finished(scenario).trained
    study = trained.study
    units = trained.draw(250, 3)
    assert list(units.records.columns) == list(study.columns)
    positive = (units.records[study.label.column] == study.label.positive).sum()
    share = trained.label_counts[study.label_values.index(study.label.positive)] / trained.label_counts.sum()
    assert positive == pytest.approx(250 * share, abs=1)
    tables = {name: as_text(table) for name, table in tables_of(units, study).items()}
    records = tables["synthetic.csv"]
    if study.windows is None:
        records.insert(0, study.unit.key or "", [str(row) for row in range(len(records))])
    parsed = parse_text(records, study)
    pd.testing.assert_frame_equal(parsed[list(study.columns)], units.records, check_dtype=False)
    if study.windows is not None:
        values, lengths = read_windows(parsed, tables["synthetic-windows.csv"], study)
        assert values.shape == units.values.shape
        assert np.array_equal(lengths, units.lengths)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it would be read from its file."""
    return table.astype(object).where(table.notna(), "").map(lambda value: value if value == "" else f"{value}")


def test_other_label_shares_may_be_asked_for(finished: RUN) -> None:
    trained = finished(Scenario.BANK).trained
    table = trained.draw(100, 3, label_counts=np.array([1.0, 3.0])).records
    assert (table["risk"] == trained.study.label_values[1]).sum() == 75


@pytest.mark.parametrize("scenario", UNITS)
def test_the_same_seed_draws_the_same_units(finished: RUN, scenario: Scenario) -> None:
    trained = finished(scenario).trained
    one, same_seed, other = trained.draw(50, 3), trained.draw(50, 3), trained.draw(50, 4)
    pd.testing.assert_frame_equal(one.records, same_seed.records)
    np.testing.assert_array_equal(one.values, same_seed.values)
    assert not one.records.equals(other.records)


def test_another_seed_draws_other_bins_and_not_only_other_values_inside_them(finished: RUN) -> None:
    trained = finished(Scenario.BANK).trained
    # Of one class, so that the order of labels is no difference; a category is a bin.
    one, other = (trained.draw(50, seed, label_counts=np.array([1.0, 0.0])).records["channel"] for seed in (3, 4))
    assert not one.equals(other)


class Stopped(Exception):  # noqa: N818 (not an error)
    """Stops a run."""


def test_a_run_that_was_interrupted_ends_in_the_same_generator(tmp_path: Path, finished: RUN) -> None:
    member = federation(Scenario.BANK)
    sites = folders(tmp_path, member)

    def stop(step: dict[str, Any]) -> None:
        if step.get("round") == 2:
            raise Stopped

    with pytest.raises(Stopped):
        conduct(tmp_path, member, sites, on_step=stop)
    Watched.answers, before = [], finished(Scenario.BANK)
    resumed = conduct(tmp_path, member, sites, site=Watched)
    assert {request.name for request, _ in Watched.answers} == {"train-3"}
    assert same(arrays_of(resumed.generator), arrays_of(before.trained.generator))
    assert same(resumed.state.critics, before.trained.state.critics)
    pd.testing.assert_frame_equal(resumed.draw(50, 1).records, before.trained.draw(50, 1).records)


def test_a_finished_run_is_drawn_from_again_without_training(tmp_path: Path) -> None:
    member = federation(Scenario.BANK)
    sites = folders(tmp_path, member)
    first = conduct(tmp_path, member, sites)
    Watched.answers = []
    again = conduct(tmp_path, member, sites, site=Watched)
    assert Watched.answers == []
    assert same(arrays_of(again.generator), arrays_of(first.generator))


def test_a_site_as_real_ones_are_refuses_to_train_a_gan(tmp_path: Path) -> None:
    member = federation(Scenario.BANK)
    steps: list[dict[str, Any]] = []
    with pytest.raises(PolicyError, match="refused"):
        conduct(tmp_path, member, folders(tmp_path, member), site=Site, on_step=steps.append)
    assert [step["step"] for step in steps] == ["one_way"]


def spoil(**options: Any) -> type[GanSite]:
    """A site to which a coordinator says something else than it should."""

    class Spoilt(GanSite):
        def _train(self, request: Request, digest: str) -> bytes:
            return super()._train(replace(request, options={**request.options, **options}), digest)

    return Spoilt


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 3},
        {"seed": -1},
        {"learning_rates": [0.1]},
        {"label_shares": None},
        {"label_shares": [1.0]},
        {"label_shares": [1.0, 0.0]},
        {"label_shares": [0.5, "0.5"]},
        {"label_shares": [0.5, 2.0]},
    ],
)
def test_a_gan_site_refuses_what_the_study_does_not_allow(tmp_path: Path, options: dict[str, Any]) -> None:
    member = federation(Scenario.BANK)
    with pytest.raises(PolicyError, match="POLICY_REFUSED"):
        conduct(tmp_path, member, folders(tmp_path, member), site=spoil(**options))


SENT = {"generator.a": np.zeros(2, np.float32), "critic.b": np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    ("arrays", "facts", "fault"),
    [
        ({"generator.a": SENT["generator.a"]}, {"units": 1.0}, "do not fit"),
        ({**SENT, "more": np.zeros(1, np.float32)}, {"units": 1.0}, "do not fit"),
        ({**SENT, "critic.b": np.zeros(2, np.float32)}, {"units": 1.0}, "do not fit"),
        ({**SENT, "critic.b": np.zeros(1, np.float64)}, {"units": 1.0}, "do not fit"),
        ({**SENT, "critic.b": np.float32([1.1])}, {"units": 1.0}, "moved farther"),
        (SENT, {}, "weigh"),
        (SENT, {"units": True}, "weigh"),
        (SENT, {"units": -1.0}, "weigh"),
        (SENT, {"units": float("nan")}, "weigh"),
        (SENT, {"units": float("inf")}, "weigh"),
    ],
)
def test_the_coordinator_refuses_networks_that_cannot_be_averaged(
    arrays: dict[str, np.ndarray], facts: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ProtocolError, match=fault):
        check_networks("north", Reply("north", facts, arrays), sent=SENT, reach=1.0)


def test_the_coordinator_takes_networks_within_reach() -> None:
    arrays = {**SENT, "critic.b": np.float32([-1.0])}
    check_networks("north", Reply("north", {"units": 0.0}, arrays), sent=SENT, reach=1.0)


@pytest.mark.parametrize("scenario", UNITS)
def test_a_study_is_adapted_and_nothing_else_in_it_changes(scenario: Scenario) -> None:
    study = choose(scenario=scenario, study=None, data=None, series=None, units=None, sites=2, seed=0).study
    adapted = adapt(study)
    assert (adapted.privacy.epsilon, adapted.privacy.holdout) == (10_000, 0)
    assert adapted.rounds.local_steps >= 1
    assert adapted.model_copy(update={"privacy": study.privacy, "rounds": study.rounds}) == study
    few = adapt(study, rounds=4, local_steps=9).rounds
    assert (few.count, few.local_steps) == (4, 9)
