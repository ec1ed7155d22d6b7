"""The head of event streams gives chances, over what each channel has."""

import pytest
import torch

from common.models.sequences import weights_of
from common.models.states import StateHead, States
from tests.common.models.test_sequences import full_length, head_of, hidden_of, noise_of


def states_of(head: StateHead, rows: int, *, scale: float = 1.0, seed: int = 3) -> States:
    return head(hidden_of(rows, scale=scale), noise_of(rows, head.shape, seed=seed), weights_of(full_length(rows)))


def head() -> StateHead:
    made = head_of("states")
    assert isinstance(made, StateHead)
    return made


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_state_head_gives_chances_over_what_each_channel_has(scale: float) -> None:
    courses = states_of(head(), 7, scale=scale)
    torch.testing.assert_close(courses._start.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(courses._move.sum(dim=2), torch.ones(7, 3))
    assert courses._emit.shape == (7, 3, 3, 6)
    torch.testing.assert_close(courses._emit.sum(dim=3), torch.ones(7, 3, 3))
    closed = torch.ones(3, 6, dtype=torch.bool)
    closed[[0, 0, 0, 1, 1, 1, 1, 1, 2, 2], [0, 1, 5, 0, 1, 2, 3, 4, 0, 5]] = False
    assert (courses._emit[:, :, closed] == 0).all()
    if scale == 1:
        assert (courses._emit[:, :, ~closed] > 0).all()


def test_a_state_is_left_and_emits_as_its_own_parameters_say() -> None:
    made = head()
    before = states_of(made, 5)
    with torch.no_grad():
        made.move[1, 2] += 0.1
        made.emit.view(3, 3, 6)[2, 1, 4] += 0.1
    after = states_of(made, 5)
    raised = torch.zeros(3, 3, dtype=torch.bool)
    raised[1, 2] = True
    assert (after._move[:, raised] > before._move[:, raised]).all()
    torch.testing.assert_close(after._move[:, [0, 2]], before._move[:, [0, 2]])
    assert (after._emit[:, 2, 1, 4] > before._emit[:, 2, 1, 4]).all()
    torch.testing.assert_close(after._emit[:, :2], before._emit[:, :2])
    torch.testing.assert_close(after._emit[:, 2, [0, 2]], before._emit[:, 2, [0, 2]])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_time_since_the_step_before_is_missing_at_first_and_never_later(scale: float, late: bool) -> None:
    made = head_of("states", gap=2, late=late)
    assert isinstance(made, StateHead)
    levels = states_of(made, 7, scale=scale).levels[:, :, -2:]  # (rows, steps, one value and missing)
    torch.testing.assert_close(levels.sum(dim=2), torch.ones(7, 4))
    assert (levels[:, 1:, 1] == 0).all()
    if late:
        assert (levels[:, 0] > 0).all() or scale > 1
    else:
        assert (levels[:, 0, 0] == 0).all()
    # Nothing else is what it would not be without.
    plain = head_of("states")
    assert isinstance(plain, StateHead)
    torch.testing.assert_close(
        states_of(plain, 7, scale=scale).levels[..., :-2], states_of(made, 7, scale=scale).levels[..., :-2]
    )


def test_states_need_no_noise_of_their_own() -> None:
    made = head()
    assert noise_of(5, made.shape).shape == (5, 0)
    torch.testing.assert_close(states_of(made, 5, seed=3).levels, states_of(made, 5, seed=4).levels, atol=0, rtol=0)


def test_only_channels_without_order_have_habits_and_new_ones_are_as_their_own_tilt_says() -> None:
    made = head()
    habits = states_of(made, 7)._habits
    assert habits is not None
    assert (habits.share[:, :2] == 0).all()
    assert ((habits.share[:, 2] > 0) & (habits.share[:, 2] < 1)).all()
    # Until a table of two steps says that values stay, they do not.
    assert ((habits.kept > 0) & (habits.kept < 0.15)).all()
    tilt = made.tilt(hidden_of(7)).view(7, 3, 6)[:, 2, [0, 5]]
    torch.testing.assert_close(habits.law[:, 2, [0, 5]], tilt.softmax(dim=1))
    assert (habits.law[:, 2, 1:5] == 0).all()
    ordered = head_of("states", ordered=(True, True, True))
    assert isinstance(ordered, StateHead)
    assert states_of(ordered, 7)._habits is None


def test_a_habit_makes_steps_alike_that_follow_each_other_and_leaves_each_step_as_it_was() -> None:
    made = head()
    with torch.no_grad():
        made.habit.weight.zero_()
        made.habit.bias.view(2, 3)[:, 2] = torch.tensor([3.0, -20.0])
        without = states_of(made, 7)
        made.habit.bias.view(2, 3)[1, 2] = 3.0
        kept = states_of(made, 7)
    torch.testing.assert_close(kept.levels, without.levels)
    more = kept.transitions(1)[0, 2] - without.transitions(1)[0, 2]
    assert (more.diagonal()[[0, 5]] > 0.01).all()
    torch.testing.assert_close(more.sum(dim=1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.transitions(1)[0, :2], without.transitions(1)[0, :2])
