"""The head of regular grids: what its courses are, and what each of its parameters does to a window."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.models.paths import FIRST_SPREAD, KEPT, PathHead, Paths, _course, rhythms_of
from common.models.sequences import weights_of
from tests.common.models.test_sequences import full_length, head_of, hidden_of, noise_of


def head(**changes: Any) -> PathHead:
    """Three channels: 2 values and missing, 5 values, and 1 value and missing, the last without an order."""
    made = head_of("paths", **changes)
    assert isinstance(made, PathHead)
    return made


def paths_of(made: PathHead, rows: int, *, scale: float = 1.0, seed: int = 3) -> Paths:
    given = hidden_of(rows, scale=scale), noise_of(rows, made.shape, seed=seed)
    with torch.no_grad():
        hidden, noise = (one.to(made.level.weight) for one in given)
        return made(hidden, noise, weights_of(full_length(rows, made.shape.steps)))


@torch.no_grad()
def without_features(made: PathHead) -> PathHead:
    """Positions and odds alone are left: nothing that features of them add."""
    for layer in (made.shift, made.sharpen, made.tilt, made.seen):
        layer.weight.zero_()
    made.tilt.bias.zero_()
    return made


@torch.no_grad()
def without_time(made: PathHead) -> PathHead:
    """Every step is as the others: no trend, no waves, no path and no rhythm."""
    for layer in (made.trend, made.wander, made.rhythm, made.wave):
        layer.weight.zero_()
    made.trend.bias.zero_()
    return made


def into(paths: Paths) -> Tensor:
    """Chance to be seen next, (rows, steps - 1, channels, 2), after a gap and after a reading."""
    return torch.stack(list(paths._seen_moves), dim=1)[..., 1]


def correlation(left: Tensor, right: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])


# --- rhythms


@pytest.mark.parametrize("steps", [2, 5, 12, 24])
def test_a_rhythm_comes_round_in_its_number_of_steps_and_each_row_has_a_phase_of_its_own(steps: int) -> None:
    made, rows = head(steps=steps), 4000
    lengths = rhythms_of(made.shape)
    assert lengths == tuple(length for length in (2, 3, 4, 6, 8, 12) if length <= steps)
    with torch.no_grad():
        for layer in (made.level, made.trend, made.wander, made.wave):
            layer.weight.zero_()
        for layer in (made.level, made.trend):
            layer.bias.zero_()
        made.rhythm.weight.zero_()
        made.rhythm.weight[: 2 * len(lengths)] = torch.eye(2 * len(lengths))
        found = made._follow(hidden_of(rows), noise_of(rows, made.shape))[0][..., : 2 * len(lengths)]
    hands = torch.view_as_complex(found.unflatten(2, (-1, 2)))  # (rows, steps, rhythms)
    for at, length in enumerate(lengths):
        torch.testing.assert_close(hands[:, :, at].abs(), torch.full((rows, steps), 2**0.5))
        turned = hands[:, 1:, at] / hands[:, :-1, at]
        torch.testing.assert_close(turned**length, torch.ones_like(turned), atol=1e-4, rtol=0)
        assert (turned.angle().abs() > 6.28 / length - 0.01).all()
        # All phases are as likely, and those of two rhythms have nothing to do with each other.
        assert abs(hands[:, 0, at].mean()) < 0.1
        for other in range(at):
            assert abs((hands[:, 0, at] * hands[:, 0, other].conj()).mean()) < 0.1


def test_readings_may_come_every_four_steps_whenever_the_first_was() -> None:
    made = without_time(without_features(head(steps=12)))
    with torch.no_grad():
        made.level.weight.zero_()
        made.level.bias.zero_()
        made.rhythm.weight[3, 2 * rhythms_of(made.shape).index(4)] = 1.0
        # Of four angles, a quarter of a round apart, the cosine of one is above that of an eighth: 1 of sqrt(2).
        made.level.bias[3] = -1.0
        made.steepness[0] = 2.0
    rows = 200
    with torch.no_grad():
        paths = made(hidden_of(rows), noise_of(rows, made.shape), weights_of(full_length(rows, 12)))
    seen = paths.draw(torch.Generator().manual_seed(0))[:, :, 0] < 2
    assert (seen.sum(dim=1) == 3).float().mean() > 0.95
    assert (seen[:, 4:] == seen[:, :-4]).all(dim=1).float().mean() > 0.95
    assert len(seen[:, :4].float().argmax(dim=1).unique()) == 4
    # So the table of how many there are is sharper than any chain's of one step could be.
    assert paths.observed()[:, 0].mean(dim=0).max() > 0.95


def test_steepness_is_how_much_a_drive_counts_for_being_seen_and_for_nothing_else() -> None:
    made = without_features(head())
    before = paths_of(made, 6)
    with torch.no_grad():
        made.steepness[2] += torch.tensor(2.0).log() / 3
    after = paths_of(made, 6)
    assert torch.equal(after._values, before._values)
    torch.testing.assert_close(
        into(after)[:, :, 2, 0].logit() - made.seen.bias[2], 2 * (into(before)[:, :, 2, 0].logit() - made.seen.bias[2])
    )
    assert torch.equal(into(after)[:, :, :2], into(before)[:, :, :2])


# --- courses


@given(st.floats(0, 0.999), st.integers(1, 60))
@settings(deadline=None, max_examples=100)
def test_a_course_is_stationary_and_its_steps_are_correlated_by_how_far_apart_they_are(kept: float, steps: int) -> None:
    course = _course(kept, steps).double()
    assert course.shape == (steps, steps)
    # Of white noise the covariance is the identity.
    apart = (torch.arange(steps)[:, None] - torch.arange(steps)).abs()
    torch.testing.assert_close(course @ course.T, torch.tensor(kept).double() ** apart, atol=2e-5, rtol=0)
    # Nothing follows from what comes later.
    assert (course.triu(diagonal=1) == 0).all()


def test_kinds_of_courses_go_from_white_noise_to_one_that_hardly_moves() -> None:
    assert KEPT[0] == 0
    assert list(KEPT) == sorted(set(KEPT))
    assert KEPT[-1] < 1
    made = head()
    assert made.courses.shape == (len(KEPT), 4, 4)
    assert torch.equal(made.courses[0], torch.eye(4))


@pytest.mark.statistical
def test_each_weight_of_a_drive_is_of_a_level_or_of_one_kind_of_course() -> None:
    rows, made = 20_000, head()
    kinds = (1.0, *KEPT)
    drives = made.wander.out_features
    found: list[Tensor] = []
    made.wander.register_forward_hook(lambda module, given, drawn: found.append(drawn))
    with torch.no_grad():
        made.wander.weight.zero_()
        weights = made.wander.weight.view(drives, len(kinds), -1)
        for kind in range(len(kinds)):
            weights[kind, kind, 1] = 1.0
    paths_of(made, rows)
    (drawn,) = found  # (rows, steps, drives)
    assert (drawn[:, :, len(kinds) :] == 0).all()
    steps = drawn.shape[1]
    apart = (torch.arange(steps)[:, None] - torch.arange(steps)).abs()
    for kind, kept in enumerate(kinds):
        covariance = drawn[:, :, kind].T @ drawn[:, :, kind] / rows
        # A product of two normals has a standard deviation of at most 2**0.5; six of them over 64 cells.
        torch.testing.assert_close(covariance, kept ** apart.float(), atol=6 * (2 / rows) ** 0.5, rtol=0)
    # Different kinds are independent.
    crossed = torch.einsum("rta,rtb->ab", drawn[:, :, : len(kinds)], drawn[:, :, : len(kinds)]) / rows / steps
    assert crossed.triu(diagonal=1).abs().max() < 0.05


# --- chances


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_path_head_gives_chances_over_what_each_channel_has(scale: float) -> None:
    paths = paths_of(head(), 7, scale=scale)
    # Value bins: 2, 5 and 1, padded to 5.
    closed = torch.tensor([[False, False, True, True, True], [False] * 5, [False, True, True, True, True]])
    assert paths._values.shape == (7, 4, 3, 5)
    assert (paths._values >= 0).all()
    assert (paths._values[:, :, closed] == 0).all()
    torch.testing.assert_close(paths._values.sum(dim=3), torch.ones(7, 4, 3))
    assert paths._seen_start.shape == (7, 3, 2)
    torch.testing.assert_close(paths._seen_start.sum(dim=2), torch.ones(7, 3))
    assert (paths._seen_start[:, 1, 1] == 1).all()
    assert len(paths._seen_moves) == 3
    for move in paths._seen_moves:
        assert move.shape == (7, 3, 2, 2)
        assert (move >= 0).all()
        torch.testing.assert_close(move.sum(dim=3), torch.ones(7, 3, 2))
        assert (move[:, 1, :, 1] == 1).all()
    if scale == 1:
        assert (paths._seen_start[:, [0, 2]] < 1).all()
        assert (into(paths)[:, :, [0, 2]] < 1).all()


@pytest.mark.parametrize("odds", [-50.0, 50.0])
def test_a_channel_that_is_never_missing_is_seen_whatever_the_odds(odds: float) -> None:
    made = head()
    with torch.no_grad():
        made.seen.bias += odds
        made.seen_again += odds
    paths = paths_of(made, 5)
    assert (paths._seen_start[:, 1, 1] == 1).all()
    assert (into(paths)[:, :, 1] == 1).all()
    for channel in (0, 2):
        seen = paths._seen_start[:, channel, 1]
        assert (seen < 1e-3).all() if odds < 0 else (seen > 1 - 1e-3).all()


@pytest.mark.parametrize("sharpness", [-100.0, 100.0])
def test_values_stay_chances_however_sharp_or_flat_they_became(sharpness: float) -> None:
    made = head()
    with torch.no_grad():
        made.sharpness += sharpness
    noise = noise_of(5, made.shape).requires_grad_()
    paths = made(hidden_of(5), noise, weights_of(full_length(5)))
    torch.testing.assert_close(paths._values.sum(dim=3), torch.ones(5, 4, 3))
    (paths.levels**2).sum().backward()
    for name, parameter in [("noise", noise), *made.named_parameters()]:
        assert torch.isfinite(parameter.grad).all(), name  # type: ignore[arg-type]


def test_the_noise_of_a_row_changes_that_row_alone_and_all_of_its_steps() -> None:
    made = head()
    noise = noise_of(4, made.shape)
    other = noise.clone()
    other[2] += noise_of(1, made.shape, seed=5)[0]
    with torch.no_grad():
        paths = [made(hidden_of(4), one, weights_of(full_length(4))) for one in (noise, other)]
    before, after = ([one._values, one._seen_start, into(one)] for one in paths)
    for old, new in zip(before, after, strict=True):
        assert (old != new).flatten(1).any(dim=1).tolist() == [False, False, True, False]
    assert (before[0] != after[0])[2].flatten(1).any(dim=1).all()


# --- before anything is learned


@pytest.mark.parametrize("seed", range(4))
def test_at_first_neighbouring_steps_go_together_and_channels_go_their_own_ways(seed: int) -> None:
    rows, steps = 3000, 12
    made = head(seed=seed, steps=steps, blocks=((0, 6), (6, 12)), sizes=(7, 7, 7), missing=(False,) * 3)
    with torch.no_grad():
        values = made(torch.zeros(rows, 6), noise_of(rows, made.shape), weights_of(full_length(rows, steps)))._values
    usual = values @ torch.arange(7.0)  # (rows, steps, channels)
    usual = usual - usual.mean(dim=0)
    for channel in (0, 1):
        following, later = (correlation(usual[:, :-lag, channel], usual[:, lag:, channel]) for lag in (1, 8))
        assert following > 0.5
        assert later < following - 0.2
    assert abs(correlation(usual[:, :, 0], usual[:, :, 1])) < 0.06
    # An ordered channel moves over its range; categories hardly know of the path.
    spread = usual.std(dim=(0, 1))
    assert spread[2] < spread[:2].min() / 3


@pytest.mark.parametrize("seed", range(4))
def test_at_first_features_hardly_move_what_has_an_order_and_where_it_is_seen(seed: int) -> None:
    made = head(seed=seed, sizes=(8, 8, 8), missing=(True,) * 3)
    found = paths_of(made, 200)
    plain = paths_of(without_features(made), 200)
    apart = (found._values - plain._values).abs().sum(dim=3).mean(dim=(0, 1)) / 2
    assert (apart[:2] < 0.15).all()
    assert (into(found) - into(plain)).abs().mean() < 0.03


def test_at_first_a_value_is_spread_around_its_position_as_much_as_is_said() -> None:
    made = without_features(head(sizes=(9, 9, 9), missing=(False,) * 3)).double()
    paths = paths_of(made, 6)
    places = made.places[:2].detach()
    logs = paths._values[:, :, :2].log()
    # The logarithm is a parabola over the places of the bins, so its second differences are constant.
    steps = places.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    bend = logs.diff(n=2, dim=3) / steps[:, 0, None] ** 2
    torch.testing.assert_close(bend, torch.full_like(bend, -1 / FIRST_SPREAD), rtol=1e-4, atol=0)
    # Categories have no places: without features they are all as likely.
    torch.testing.assert_close(paths._values[:, :, 2], torch.full((6, 4, 9), 1 / 9).double())


# --- what each parameter does


def higher(before: Tensor, after: Tensor) -> bool:
    """Whether the second of two distributions lies above the first, in every row."""
    return bool((after.cumsum(dim=-1)[..., :-1] < before.cumsum(dim=-1)[..., :-1]).all())


def flat(made: PathHead) -> PathHead:
    """Positions near the middle and values all around: no chance is too near 0 or 1 to be seen to change."""
    with torch.no_grad():
        made.sharpness.zero_()
    return made


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_level_moves_its_own_channel_if_that_is_ordered(channel: int) -> None:
    made = flat(without_features(head(sizes=(4, 6, 5))))
    before = paths_of(made, 5)._values
    with torch.no_grad():
        made.level.bias[channel] += 0.5
    after = paths_of(made, 5)._values
    own = slice(0, made.shape.values[channel])
    if made.shape.ordered[channel]:
        assert higher(before[:, :, channel, own], after[:, :, channel, own])
    others = [other for other in range(3) if other != channel or not made.shape.ordered[channel]]
    torch.testing.assert_close(after[:, :, others], before[:, :, others])


def test_a_trend_lowers_what_is_early_and_raises_what_is_late() -> None:
    made = flat(without_features(head()))
    before = paths_of(made, 5)._values[:, :, 1]
    with torch.no_grad():
        made.trend.bias[1] += 0.5
    after = paths_of(made, 5)._values[:, :, 1]
    assert higher(after[:, 0], before[:, 0])
    assert higher(after[:, 1], before[:, 1])
    assert higher(before[:, 2], after[:, 2])
    assert higher(before[:, 3], after[:, 3])


def test_waves_are_of_time_alone_and_each_goes_up_and_down_once_more() -> None:
    made = flat(without_time(without_features(head(steps=9, blocks=((0, 4), (4, 9))))))
    for wave in range(made.wave.in_features):
        with torch.no_grad():
            made.wave.weight.zero_()
            made.wave.weight[1, wave] = 1.0
        usual = paths_of(made, 3)._values[:, :, 1] @ torch.arange(5.0)  # (rows, steps)
        ups = usual.diff(dim=1).sign()
        torch.testing.assert_close(ups, ups[:1].expand_as(ups))
        assert (ups[0, 1:] != ups[0, :-1]).sum() == wave


def test_a_sharper_position_gives_sharper_values_of_its_own_ordered_channel() -> None:
    made = flat(head(sizes=(4, 6, 5)))
    before = paths_of(made, 50)._values
    for channel in range(3):
        with torch.no_grad():
            made.sharpness.zero_()
            made.sharpness[channel] = 0.5
        after = paths_of(made, 50)._values
        others = [other for other in range(3) if other != channel or not made.shape.ordered[channel]]
        torch.testing.assert_close(after[:, :, others], before[:, :, others])
        if made.shape.ordered[channel]:
            # Around its mean, in places.
            places = torch.where(made.closed[channel], 0.0, made.places[channel].detach())
            wide, narrow = (
                values[:, :, channel] @ places**2 - (values[:, :, channel] @ places) ** 2 for values in (before, after)
            )
            assert (narrow < wide).all()


def test_a_bin_is_as_likely_as_its_place_is_near_the_position() -> None:
    made = without_time(without_features(head()))
    order = torch.tensor([0.7, -1.2, 0.1, 1.4, -0.5])
    with torch.no_grad():
        made.level.weight.zero_()
        made.places[1] = order
        for position in (-1.3, -0.4, 0.2, 0.6, 1.5):
            made.level.bias[1] = position
            values = paths_of(made, 2)._values[:, :, 1]
            near = (order - position).abs().argsort()
            assert (values[..., near].diff(dim=-1) < 0).all()


def test_channels_that_share_their_courses_go_together() -> None:
    made = without_features(head(sizes=(7, 7, 7), missing=(False,) * 3))
    with torch.no_grad():
        for layer in (made.level, made.trend):
            layer.weight.zero_()
        for layer in (made.wander, made.rhythm):
            layer.weight[1] = layer.weight[0]
        for name in ("level", "trend"):
            getattr(made, name).bias.zero_()
        made.wave.weight.zero_()
    values = paths_of(made, 20)._values
    torch.testing.assert_close(values[:, :, 0], values[:, :, 1])


def test_being_seen_again_moves_only_the_chance_after_a_reading_and_how_a_window_begins() -> None:
    made = head()
    before = paths_of(made, 6)
    with torch.no_grad():
        made.seen_again[0] -= 1.0
    after = paths_of(made, 6)
    assert torch.equal(after._values, before._values)
    assert torch.equal(into(after)[:, :, 1:], into(before)[:, :, 1:])
    assert torch.equal(into(after)[:, :, 0, 0], into(before)[:, :, 0, 0])
    assert (into(after)[:, :, 0, 1] < into(before)[:, :, 0, 1]).all()
    assert (after._seen_start[:, 0, 1] < before._seen_start[:, 0, 1]).all()
    assert torch.equal(after._seen_start[:, 1:], before._seen_start[:, 1:])


@pytest.mark.parametrize("again", [-3.0, 3.0])
def test_a_window_begins_between_what_follows_a_gap_and_what_follows_a_reading(again: float) -> None:
    made = without_time(head())
    with torch.no_grad():
        made.seen_again += again
    paths = paths_of(made, 6)
    for channel in (0, 2):
        after = into(paths)[:, 0, channel].sort(dim=1).values
        first = paths._seen_start[:, channel, 1]
        assert ((after[:, 0] < first) & (first < after[:, 1])).all()
    # Without a memory it is as any other step.
    with torch.no_grad():
        made.seen_again.zero_()
    paths = paths_of(made, 6)
    torch.testing.assert_close(into(paths), paths._seen_start[:, None, :, 1:].expand(-1, 3, -1, 2))


def test_the_odds_of_being_seen_have_drives_of_their_own() -> None:
    made = without_features(head())
    before = paths_of(made, 6)
    with torch.no_grad():
        made.level.bias[3 + 2] += 1.0
    after = paths_of(made, 6)
    assert torch.equal(after._values, before._values)
    assert (into(after)[:, :, 2] > into(before)[:, :, 2]).all()
    assert (after._seen_start[:, 2, 1] > before._seen_start[:, 2, 1]).all()
    assert torch.equal(into(after)[:, :, :2], into(before)[:, :, :2])


def test_the_odds_of_a_step_are_those_of_being_seen_in_that_step() -> None:
    made = without_time(without_features(head()))
    with torch.no_grad():
        made.seen_again.zero_()
        made.trend.bias[3] += 1.5
    paths = paths_of(made, 6)
    chance = torch.cat([paths._seen_start[:, :1, 1], into(paths)[:, :, 0, 0]], dim=1)  # (rows, steps)
    rises = chance.logit().diff(dim=1)
    assert (rises > 0.1).all()
    torch.testing.assert_close(rises, rises[:, :1].expand_as(rises))


@pytest.mark.parametrize("layer", ["shift", "sharpen", "tilt", "seen"])
def test_features_move_positions_sharpness_values_and_odds(layer: str) -> None:
    made = head(sizes=(4, 6, 5))
    with torch.no_grad():
        for name in ("shift", "sharpen", "tilt", "seen"):
            if name != layer:
                getattr(made, name).weight.zero_()
    found = paths_of(made, 6)
    with torch.no_grad():
        getattr(made, layer).weight.zero_()
    plain = paths_of(made, 6)
    # Whether ordered values, categories, and odds are others than without.
    moved = [
        not torch.allclose(found._values[:, :, :2], plain._values[:, :, :2]),
        not torch.allclose(found._values[:, :, 2], plain._values[:, :, 2]),
        not torch.allclose(into(found)[:, :, [0, 2]], into(plain)[:, :, [0, 2]]),
    ]
    expected = {"shift": [True, False, False], "sharpen": [True, False, False], "tilt": [True, True, False]}
    assert moved == expected.get(layer, [False, False, True])
