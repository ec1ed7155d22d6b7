"""How much of its budget each site is asked to spend in each round: stage prior x PID, ending at the budget.

The controller plans, a site decides: nothing here sees a row, and no guarantee rests on it, since the sites' ledgers
are a filter that stays exact when noise levels are chosen from earlier outputs. Its inputs were released or bought
before, so whatever it does is post-processing. It never asks for more than is left of the plan.

Spend is counted in shares of the plan's total (squared mu), so noise is proportional to 1 / sqrt(share). A round is
decided in four steps:

1. Feed-forward. What is left is laid out over the rounds to come by w_r m, w_{r+1}, w_{r+2}, ...: the stage prior
   w_r = exp(kappa (r - 1) / (rounds - 1)), with the PID's multiplier m on this round. The prior takes at most half of
   what slew allows (in logarithms), so that however few rounds there are the other half is the reaction's.
2. Floor. Where a share would pass `max_share` (a site's least noise), the excess flows to the other rounds.
3. Slew. Noise moves by at most a factor 1.25 from round to round, so shares by G = 1.25^2.
4. Reach. What stays after this round must be spendable under floor and slew, so the share is kept between the one from
   which growth by G in every later round just empties the budget and the one from which shrinking by G just does.

Steps 3 and 4 never contradict each other: if round r lies between its bounds, then r + 1 has a share that lies between
its own and within the slew of r. So the shares sum to min(1, rounds x max_share) up to rounding, whatever the quality.

The target moves with the plan's quality curve, and errors are averaged, not qualities: the mean of five rounds of a
rising curve lies below its end, so a run that is exactly on plan would otherwise be told that it lags.

Source: Åström and Hägglund 1995, PID Controllers, chapter 3 (conditional integration, filtered derivative).
"""

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Final, Literal, Self, get_args

Mode = Literal["fixed", "stage", "pid"]
Direction = Literal["lead", "lag"]
Clamp = Literal["multiplier", "floor", "slew", "reach"]

# More would overflow the powers of G; a share of 1/1000 of a budget at epsilon 1 buys nothing in any case.
MAX_ROUNDS: Final = 1000
SLEW: Final = 1.25
"""The largest factor between the noise of two rounds that follow each other."""
_GROWTH: Final = SLEW**2
_WINDOW: Final = 5
_WEIGHTS: Final = {"frechet_ratio": 0.4, "critic_accuracy": 0.3, "validation_auc": 0.3}
_PROPORTIONAL, _INTEGRAL, _DERIVATIVE = 0.6, 0.15, 0.2
_MULTIPLIER: Final = (0.5, 2.0)
# By the last round the planned quality has covered 1 - e^-3 = 95 % of the way to its goal.
_APPROACH: Final = 3.0
# A share that a bound moved by less than this was moved by rounding.
_ROUNDING: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class NoisePlan:
    """What is agreed before the first round.

    mode: `fixed` equal shares, `stage` the prior alone, `pid` the prior and the reaction to quality.
    rounds: that spend, 1 to MAX_ROUNDS.
    kappa: noise falls by exp(-kappa / 2) from the first round to the last; 0 to 1. Clipped where so few rounds cannot
        fall so far within half of the slew limit (2 rounds: 0.223, 3 rounds: 0.446, 4 rounds: 0.669, 5 rounds: 0.893).
    direction: `lead` answers quality above plan with less noise, `lag` with more.
    max_share: no round asks for more; > 0, at most 1. The floor of the noise, as a share.
    goal: the combined quality that the plan tends to; > 0, at most 1.
    reference_auc: the validation AUC that counts as quality 1, from public knowledge; > 0.5, at most 1.

    Raises:
        ValueError: a field is out of range.
    """

    mode: Mode
    rounds: int
    kappa: float = 1.0
    direction: Direction = "lead"
    max_share: float = 1.0
    goal: float = 0.9
    reference_auc: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        for name, known in (("mode", get_args(Mode)), ("direction", get_args(Direction))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        if type(self.rounds) is not int or not 1 <= self.rounds <= MAX_ROUNDS:
            raise ValueError(f"rounds={self.rounds}: expected a whole number from 1 to {MAX_ROUNDS}")
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa={self.kappa}: expected from 0 to 1")
        for name, above in (("max_share", 0.0), ("goal", 0.0), ("reference_auc", 0.5)):
            if not above < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected above {above} and at most 1")

    @property
    def stage_ratio(self) -> float:
        """The stage prior of a round over that of the round before."""
        if self.mode == "fixed" or self.rounds == 1:
            return 1.0
        return min(math.exp(self.kappa / (self.rounds - 1)), SLEW)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What is known of the generator when a round is decided; None where nothing was bought or noise hides it.

    frechet_ratio: Fréchet distance now over that before the first step of training, both less what noise makes of
        them; >= 0.
    critic_accuracy: share of held-out real units that look more real to a discriminator than half of the synthetic
        ones, 0 to 1; 0.5 is best.
    validation_auc: of a classifier taught by synthetic rows, on held-out units, 0 to 1.

    Raises:
        ValueError: a field is out of range or not finite.
    """

    frechet_ratio: float | None = None
    critic_accuracy: float | None = None
    validation_auc: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        ratio = self.frechet_ratio
        if ratio is not None and not 0 <= ratio < math.inf:
            raise ValueError(f"frechet_ratio={ratio}: expected a finite number >= 0")
        for name in ("critic_accuracy", "validation_auc"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected from 0 to 1")

    def components(self, *, reference_auc: float) -> dict[str, float]:
        """Each input that is there as a quality from 0 to 1, by name."""
        found = {}
        if self.frechet_ratio is not None:
            found["frechet_ratio"] = 1 - min(float(self.frechet_ratio), 1.0)
        if self.critic_accuracy is not None:
            found["critic_accuracy"] = 1 - 2 * abs(float(self.critic_accuracy) - 0.5)
        if self.validation_auc is not None:
            found["validation_auc"] = _clip((float(self.validation_auc) - 0.5) / (reference_auc - 0.5), 0, 1)
        return found


@dataclass(frozen=True, kw_only=True)
class NoiseState:
    """All that the next decision depends on besides plan and quality; the default is the state before round 1.

    rounds_decided: so far.
    remaining: share that no round has asked for; rounded down, so that shares asked for plus it never pass 1, exactly.
    last_share: of the round before.
    starts: of each input seen so far, the rounds decided before its first value, and that value as a quality.
    window: quality minus target of up to five rounds, newest last; None for a round without any input.
    error: the window's mean when an input last came.
    integral: of the error, -1 to 1.
    derivative: of the error, smoothed.
    saturated: 1 or -1 while a larger or smaller multiplier would have changed nothing, else 0.

    Raises:
        ValueError: a field is out of range.
    """

    rounds_decided: int = 0
    remaining: float = 1.0
    last_share: float | None = None
    starts: dict[str, tuple[int, float]] = field(default_factory=dict)
    window: tuple[float | None, ...] = ()
    error: float = 0.0
    integral: float = 0.0
    derivative: float = 0.0
    saturated: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run can have come to."""
        ranges = {"remaining": (0, 1), "error": (-1, 1), "integral": (-1, 1), "derivative": (-2, 2)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: expected from {low} to {high}")
        if self.rounds_decided < 0 or (self.last_share is None) != (self.rounds_decided == 0):
            raise ValueError("rounds_decided: expected a last share from the first round on")
        if self.last_share is not None and not 0 < self.last_share <= 1:
            raise ValueError(f"last_share={self.last_share}: expected above 0 and at most 1")

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint: plain JSON, from which `from_dict` makes an equal state."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read back what `as_dict` wrote.

        Raises:
            ValueError: not the fields of a state, or one is out of range.
        """
        try:
            starts = {name: (int(since), float(value)) for name, (since, value) in data["starts"].items()}
            return cls(**{**data, "starts": starts, "window": tuple(data["window"])})
        except (KeyError, TypeError, AttributeError):
            raise ValueError("noise state: not the fields of one") from None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One round's share and every term that led to it.

    round: counted from 1.
    share: of the plan's total that this round may spend.
    remaining: share that is left for later rounds.
    prior: w_r, 1 in the first round.
    quality: combined, 0 to 1, of this round's inputs; None without any.
    target: where the plan wanted it.
    error: quality minus target, mean over the window.
    proportional, integral, derivative: what each adds to the logarithm of the multiplier; 0 unless the mode is `pid`.
    multiplier: on the prior, 0.5 to 2.
    clamped_by: what moved the share away from feed-forward x multiplier: `multiplier` (clipped), `floor` (this round's
        or a later one's), `slew`, `reach` (else the budget could not be emptied, or not without passing it).
    """

    round: int
    share: float
    remaining: float
    prior: float
    quality: float | None
    target: float | None
    error: float
    proportional: float
    integral: float
    derivative: float
    multiplier: float
    clamped_by: tuple[Clamp, ...]

    def as_dict(self) -> dict[str, Any]:
        """For a line of rounds.jsonl: plain JSON."""
        return {**asdict(self), "clamped_by": list(self.clamped_by)}


def decide(plan: NoisePlan, state: NoiseState, quality: Quality) -> tuple[NoiseState, Decision]:
    """Decide the next round's share.

    Guarantees, for any sequence of qualities: the exact sum of all shares is at most 1; after the last round it is
    min(1, rounds x max_share) to 1e-9; no share passes max_share; the noise of two rounds differs by at most a factor
    1.25 (1 + 1e-9). The same arguments give the same result, bit for bit.
    Edge cases: no input in this round -> the window's error still counts, integral and derivative learn nothing; no
    input in five rounds -> the error is 0; an input's first value is its starting point, error 0; `fixed` and `stage`
    report quality and do not react to it; max_share below 1 / rounds -> max_share every round.

    Example:
        >>> plan = NoisePlan(mode="pid", rounds=4)
        >>> state, first = decide(plan, NoiseState(), Quality(frechet_ratio=1.0))
        >>> state, second = decide(plan, state, Quality(frechet_ratio=0.2))
        >>> second.error > 0 and second.share > share_plan("pid", 4, kappa=1.0)[1]
        True

    Args:
        plan: the same for all rounds of a run.
        state: `NoiseState()` before the first round, then what the last call returned.
        quality: of the generator as it is before this round.

    Raises:
        ValueError: all rounds of the plan are decided.
    """
    if state.rounds_decided >= plan.rounds:
        raise ValueError(f"rounds_decided={state.rounds_decided}: the plan has {plan.rounds} rounds")
    compared, starts = _compare(plan, state, quality)
    deviation = compared and compared[0] - compared[1]
    window = (*state.window, deviation)[-_WINDOW:]
    error = fmean(known) if (known := [one for one in window if one is not None]) else 0.0
    sign = {"lead": 1, "lag": -1}[plan.direction]
    last, integral, derivative = state.error, state.integral, state.derivative / 2
    if deviation is not None:
        last = error
        derivative += (error - state.error) / 2
        # What a clamp keeps from acting must not pile up, or it would act long after the error has turned.
        if sign * error * state.saturated <= 0:
            integral = _clip(integral + error, -1, 1)
    terms = (0.0, 0.0, 0.0)
    if plan.mode == "pid":
        terms = (sign * _PROPORTIONAL * error, sign * _INTEGRAL * integral, sign * _DERIVATIVE * derivative)
    wanted = math.exp(sum(terms))
    multiplier = _clip(wanted, *_MULTIPLIER)
    clipped: tuple[Clamp, ...] = ("multiplier",) if wanted != multiplier else ()
    share, clamps, pressed = _bounded_share(plan, state, multiplier)
    next_state = NoiseState(
        rounds_decided=state.rounds_decided + 1,
        # One step down from the nearest double is at most the true difference.
        remaining=math.nextafter(state.remaining - share, 0.0),
        last_share=share,
        starts=starts,
        window=window,
        error=last,
        integral=integral,
        derivative=derivative,
        saturated=(wanted > multiplier) - (wanted < multiplier) or pressed,
    )
    decision = Decision(
        round=next_state.rounds_decided,
        share=share,
        remaining=next_state.remaining,
        prior=plan.stage_ratio**state.rounds_decided,
        quality=compared[0] if compared else None,
        target=compared[1] if compared else None,
        error=error,
        proportional=terms[0],
        integral=terms[1],
        derivative=terms[2],
        multiplier=multiplier,
        clamped_by=clipped + clamps,
    )
    return next_state, decision


def share_plan(mode: Mode, rounds: int, kappa: float, *, max_share: float = 1.0) -> tuple[float, ...]:
    """The share of every round if quality says nothing, (rounds,); what `pid` spends when quality is just as planned.

    Raises:
        ValueError: an argument is out of range.
    """
    plan = NoisePlan(mode=mode, rounds=rounds, kappa=kappa, max_share=max_share)
    state, shares = NoiseState(), []
    for _ in range(rounds):
        state, decision = decide(plan, state, Quality())
        shares.append(decision.share)
    return tuple(shares)


def _compare(
    plan: NoisePlan, state: NoiseState, quality: Quality
) -> tuple[tuple[float, float] | None, dict[str, tuple[int, float]]]:
    """Combined quality and its target, None without an input; and where each input started.

    An input's target runs from its own first value towards the goal, so one that is bought now and then does not look
    like a jump of quality. With all inputs in all rounds this is one curve for the combined quality.
    """
    components = quality.components(reference_auc=plan.reference_auc)
    starts = {name: (state.rounds_decided, value) for name, value in components.items()} | state.starts
    if not components:
        return None, starts
    found = target = 0.0
    for name, value in components.items():
        since, start = starts[name]
        progress = -math.expm1(-_APPROACH * (state.rounds_decided - since) / plan.rounds)
        found += _WEIGHTS[name] * value
        target += _WEIGHTS[name] * (start + (plan.goal - start) * progress)
    total = sum(_WEIGHTS[name] for name in components)
    return (found / total, target / total), starts


def _bounded_share(plan: NoisePlan, state: NoiseState, multiplier: float) -> tuple[float, tuple[Clamp, ...], int]:
    """This round's share, what moved it, and the way (1 or -1) in which a stronger multiplier would be in vain."""
    left = plan.rounds - state.rounds_decided
    ratio, remaining, cap = plan.stage_ratio, state.remaining, plan.max_share
    weights = [multiplier, *(ratio**later for later in range(1, left))]
    wished = _first_share(remaining, weights, cap=math.inf)
    planned = _first_share(remaining, weights, cap=cap)
    low = _first_share(remaining, [_GROWTH**later for later in range(left)], cap=cap)
    high = _first_share(remaining, [_GROWTH**-later for later in range(left)], cap=cap)
    slowest, fastest = (
        (0.0, math.inf) if state.last_share is None else (state.last_share / _GROWTH, state.last_share * _GROWTH)
    )
    # The upper bound last: where rounding makes the two cross, nothing is overspent.
    share = min(max(planned, low, slowest), high, fastest)
    clamps: list[Clamp] = []
    if abs(planned - wished) > _ROUNDING * wished:
        clamps.append("floor")
    raised, lowered = share > planned * (1 + _ROUNDING), share < planned * (1 - _ROUNDING)
    if raised:
        clamps.append("slew" if slowest >= low else "reach")
    if lowered:
        clamps.append("slew" if fastest <= high else "reach")
    at_floor = planned >= cap * (1 - _ROUNDING)
    return share, tuple(clamps), (lowered or at_floor) - raised


def _first_share(total: float, weights: list[float], *, cap: float) -> float:
    """The first of the shares min(cap, c weight) that sum to `total`; `cap` where even that many caps fall short."""
    rest = weights
    while rest:
        level = total / math.fsum(rest)
        fitting = [weight for weight in rest if level * weight <= cap]
        if len(fitting) == len(rest):
            return min(cap, level * weights[0])
        total -= cap * (len(rest) - len(fitting))
        rest = fitting
    return cap


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
