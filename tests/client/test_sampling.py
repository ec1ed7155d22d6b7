"""A critic that looks at some of the units each time: who takes part, in what is released, and what it costs.

How a sample is drawn is tested with the noise (tests/common/privacy/test_noise.py); here, what a site does with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from common.data.units import bound_units
from common.models.neural import GRADIENT_SCALE
from common.privacy.accountants import RdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import read_ledger
from common.privacy.noise import GaussianNoise, SeededNoise
from common.wire.messages import Reply
from tests.client.homes import (
    KEY,
    MEASUREMENTS,
    ROWS,
    SINGLE,
    STUDY,
    WINDOWED,
    Home,
    below_noise,
    forbidden,
    make_home,
    refused,
    sampled,
)

Choose = Callable[[int], np.ndarray]


@dataclass
class Chosen:
    """Noise of a fixed seed, and a choice of units that a test makes.

    choose: from the number of units, who takes part.
    asked: the number of units, the rate and the message, each time.
    """

    choose: Choose
    asked: list[tuple[int, float, str]] = field(default_factory=list)
    kind: str = "test-seed"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """As `SeededNoise`."""
        return SeededNoise(b"seed").draw(size, noise_stddev=noise_stddev, context=context)

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """The test's choice."""
        self.asked.append((size, rate, context))
        return self.choose(size)


def everybody(units: int) -> np.ndarray:
    return np.ones(units, dtype=bool)


def nobody(units: int) -> np.ndarray:
    return np.zeros(units, dtype=bool)


@pytest.fixture(params=["records", "windows"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A site whose critic looks at half of the units each time."""
    if request.param == "records":
        return make_home(tmp_path / "north", study=sampled(STUDY))
    return make_home(tmp_path / "north", SINGLE, study=sampled(WINDOWED))


def training_units() -> int:
    """How many patients train; those of `ROWS` and of `SINGLE` are the same."""
    names = pd.DataFrame({"patient": [row[0] for row in SINGLE]})
    split = bound_units(names, key="patient", max_records=1, drop_surplus=False, holdout=0.3, secret=KEY)
    return int((~split.holdout).sum())


def gradient(home: Home, choose: Choose, name: str = "critic") -> np.ndarray:
    """The sum below the noise of one message of the critic, for whom a test chooses."""
    noise = Chosen(choose)
    reply = Reply.decode(home.open(noise).handle(home.ask("critic", name=name, options={"share": 0.01}).encode()))  # type: ignore[arg-type]
    assert reply.refused is None
    assert noise.asked == [(training_units(), 0.5, f"run-1/{name}")]
    return below_noise(reply, f"run-1/{name}")


def test_units_are_chosen_and_not_their_records(site: Home) -> None:
    # The first patient of the table without windows has 41 records.
    assert len(ROWS) == 2 * len(SINGLE)
    gradient(site, everybody)


def test_a_sample_is_the_sum_over_the_units_in_it_and_no_others(site: Home) -> None:
    units = training_units()
    own = [gradient(site, lambda size, unit=unit: np.arange(size) == unit, f"unit-{unit}") for unit in range(units)]  # type: ignore[misc]
    norms = [int((one.astype(object) ** 2).sum()) for one in own]
    assert min(norms) > 0
    assert max(norms) <= GRADIENT_SCALE**2
    chosen = np.random.default_rng(0).random(units) < 0.5
    assert np.array_equal(gradient(site, lambda _: chosen, "some"), np.sum(own, axis=0, where=chosen[:, None]))
    assert np.array_equal(gradient(site, everybody, "all"), np.sum(own, axis=0))


def test_a_sample_of_nobody_is_released_like_any_other(site: Home) -> None:
    assert not gradient(site, nobody, "nobody").any()
    gradient(site, everybody, "everybody")
    first, second = site.charges
    assert first.event == second.event
    assert len(site.sealed) == 2
    # But for what is said of the ledger, which shows how many entries came before.
    replies = map(Reply.decode, site.sealed.values())
    assert (
        len({len(replace(one, facts={**one.facts, "ledger_head": None, "spending": None}).encode()) for one in replies})
        == 1
    )


def test_the_event_states_the_rate_and_costs_what_it_costs_with_it(tmp_path: Path) -> None:
    for rate in (0.9, 0.5, 0.05):
        home = make_home(tmp_path / str(rate), study=sampled(STUDY, rate))
        accountant = home.study.accountant
        assert isinstance(accountant, RdpAccountant)
        bound = accountant.bound(epsilon=1, delta=1e-5)
        for kind in MEASUREMENTS:
            reply = Reply.decode(home.open().handle(home.ask(kind).encode()))
            event = GaussianEvent.from_dict(dict(reply.facts["event"]))
            assert event.sampling == (rate if kind == "critic" else 1)
            assert ("sampling" in reply.facts["event"]) == (kind == "critic")
            # As much of the share as the search for the noise leaves.
            assert 0.25 * bound * (1 - 1e-6) <= accountant.spend(event) <= 0.25 * bound
            # The noise of such an event without sampling would cost more, and be more for the same.
            plain = accountant.noise_stddev(
                squared_sensitivity=event.squared_sensitivity, spend=0.25 * bound, sampling=1.0
            )
            assert (event.noise_stddev < 0.999 * plain) == (kind == "critic")
        book = read_ledger(home.ledger)
        charged = [charge.event for charge in home.charges if charge.event.account == "train"]
        assert book.worst(home.study.digest()) == sum(Fraction(accountant.spend(event)) for event in charged)
        assert book.asset["accountant"] == accountant.as_dict()


def test_what_sampling_saves_buys_more_messages(tmp_path: Path) -> None:
    answers = {}
    for rate in (0.5, 1.0):
        home = make_home(tmp_path / str(rate), study=sampled(STUDY, rate))
        site = home.open()
        answers[rate] = [
            refused(site.handle(home.ask("critic", name=str(number), options={"share": 0.3}).encode()))
            for number in range(4)
        ]
    # A share is a share, whatever it buys.
    assert answers[0.5] == answers[1.0] == [None, None, None, "BUDGET_REFUSED"]


@pytest.mark.parametrize("study", [STUDY, sampled(STUDY, 1.0)])
def test_without_sampling_nobody_is_chosen_from(tmp_path: Path, study: dict[str, object]) -> None:
    home, noise = make_home(tmp_path / "north", study=study), Chosen(nobody)
    for kind in MEASUREMENTS:
        reply = Reply.decode(home.open(noise).handle(home.ask(kind, options={"share": 0.1}).encode()))  # type: ignore[arg-type]
        assert below_noise(reply, f"run-1/{kind}").any()
    assert noise.asked == []


def test_only_the_critic_s_gradient_is_of_a_sample(site: Home) -> None:
    noise = Chosen(nobody)
    for kind in MEASUREMENTS:
        reply = Reply.decode(site.open(noise).handle(site.ask(kind, options={"share": 0.1}).encode()))  # type: ignore[arg-type]
        assert below_noise(reply, f"run-1/{kind}").any() == (kind != "critic")
    assert [context for _, _, context in noise.asked] == ["run-1/critic"]


def test_a_repeated_request_chooses_nobody_anew(site: Home) -> None:
    asked = site.ask("critic").encode()
    body = site.open().handle(asked)
    assert refused(body) is None
    assert site.open(forbidden()).handle(asked) == body


@dataclass
class Watched:
    """Real noise, and whom it chose."""

    chosen: list[np.ndarray] = field(default_factory=list)
    kind: str = "csprng"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        """As `GaussianNoise`."""
        return GaussianNoise().draw(size, noise_stddev=noise_stddev, context=context)

    def sample(self, size: int, *, rate: float, context: str) -> np.ndarray:
        """As `GaussianNoise`."""
        self.chosen.append(GaussianNoise().sample(size, rate=rate, context=context))
        return self.chosen[-1]


@pytest.mark.statistical
def test_at_a_running_site_each_unit_is_chosen_at_the_rate_and_anew_for_each_message(tmp_path: Path) -> None:
    home, noise = make_home(tmp_path / "north", study=sampled(STUDY, 0.3)), Watched()
    site = home.open(noise)  # type: ignore[arg-type]
    for number in range(60):
        asked = home.ask("critic", name=f"critic-{number}", options={"share": 0.01})
        assert refused(site.handle(asked.encode())) is None
    chosen = np.array(noise.chosen)
    assert chosen.shape == (60, training_units())
    # Of 1,770 pairs each is alike with 0.58^25: one by chance in 500 runs, three or more in 3e8.
    assert len({one.tobytes() for one in chosen}) >= 58
    # False alarm: 1e-9 for the whole, 1e-9 times the number of units for each.
    assert stats.binomtest(int(chosen.sum()), chosen.size, 0.3).pvalue > 1e-9
    assert min(stats.binomtest(int(one), 60, 0.3).pvalue for one in chosen.sum(axis=0)) > 1e-9
