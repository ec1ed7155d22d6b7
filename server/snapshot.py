"""What a run looks like from outside: one dictionary, from which status, page, stream and metrics are all made.

It holds what `MEANINGS` lists and nothing else, each field taken by its name from what the coordinator holds: its
study, its last checkpoint, rounds.jsonl, events.jsonl, its certificate, its members' certificates. All of that is
public, or was noised and accounted at a site before it came. The folders of sites, ledgers, synthetic rows and what a
simulation measured against real rows are not opened.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from common.errors import CheckpointError, ExitCode, PrivShareError, StudyError
from common.evaluation.numerals import is_number
from common.evaluation.steps import kind_of, stage_of
from common.study import Study, load_study
from common.wire.membership import WARN_DAYS
from server.checkpoints import latest_facts
from server.gates import gates_of
from server.journal import read_journal
from server.noise_controller import SLEW
from server.provision import MEMBERS, Roster, days_of, read_roster
from server.run_folder import asked, is_held, read_outcome, read_start

SNAPSHOT_SCHEMA: Final = "privshare.snapshot/1"
_TAIL: Final = 24
"""Events that are shown."""
_ASIDE: Final = ("one_way", "monitor", "verdict")
"""Releases that are no measurement by a discriminator."""
_PATIENCE: Final = 60.0
"""Seconds without a step that are no news, however quick the steps before were."""
_DONE: Final = ("published", "measured")
_OPEN_METHODS: Final = ("privshare", "local-only")
"""Methods of a simulation whose quality figures follow from noised releases; those of the others are of real rows."""

MEANINGS: Final[Mapping[str, str]] = {
    "schema": "Form of this snapshot.",
    "study.name": "Name of the study.",
    "study.digest": "SHA-256 of the study: what every site approved and every message names.",
    "study.unit": "What is protected: one unit with all its records.",
    "study.epsilon": "Epsilon of the study: no site spends more, whatever the coordinator asks.",
    "study.delta": "Delta of the study.",
    "study.accountant": "How spends are added up.",
    "study.noise_trust": "local: the coordinator sees each site's noised answer. masked: it sees sums alone.",
    "run.name": "Name of the run, in every message and the certificate.",
    "run.state": (
        "waiting: not begun. running. pausing, stopping: asked for, after the step that is going on. paused: waits, "
        "and asks nothing of sites. stopped, failed: ended, and can be started again. lost: no program runs it now. "
        "published: done. measured: done, by a method that publishes nothing."
    ),
    "run.is_simulated": "Whether all sites are simulated on this machine.",
    "run.stage": "Measurements by the discriminators so far.",
    "run.stages": "Measurements of the whole run.",
    "run.round": "Rounds of training so far.",
    "run.rounds": "Rounds of the whole run.",
    "run.progress": "Measurements and rounds that are done, as a share of all.",
    "run.eta_seconds": "Time to the last round, from how long steps of this run took; pauses are not counted.",
    "run.last_step": "The step that ended last.",
    "run.last_step_at": "When the last step ended, or the folder last changed where no moments were written down.",
    "run.stale_after": "Seconds without a step after which something is wrong: three times the longest so far.",
    "run.began_at": "When the run began.",
    "run.budget_used": "The largest share that any site has spent of any of its budgets.",
    "run.code": "Exit code of the run: 0 published, 69 stopped; the others are in docs/study.md.",
    "run.message": "How the run ended, in a line.",
    "run.void_because": "Why no guarantee holds, if none does.",
    "verdict.tone": "good, attention or alarm.",
    "verdict.word": "The run in a word.",
    "verdict.sentence": "The run in a sentence.",
    "budget[].site": "Name of the site.",
    "budget[].account": "train: units that train. holdout: units that only monitor, on a budget of their own.",
    "budget[].spent": "Share of the site's own budget that is spent: charged to its ledger before noise was drawn.",
    "budget[].projected": "Share that will be spent at the end, if all goes on as planned.",
    "budget[].epsilon_spent": "The same as epsilon, by the study's accountant.",
    "budget[].epsilon_projected": "The projected end as epsilon.",
    "budget[].epsilon_cap": "The most that the site lets the study spend: the study's epsilon, or its own smaller cap.",
    "noise[].stage": "Number of the measurement.",
    "noise[].share": "Share of the discriminators' budget that this measurement may spend: more share is less noise.",
    "noise[].prior": "What the plan alone asks for, in shares of the first measurement.",
    "noise[].multiplier": "What the PID controller makes of it: above 1 it spends more than planned.",
    "noise[].proportional": "Term of the error now, in the logarithm of the multiplier.",
    "noise[].integral": "Term of errors so far, in the logarithm of the multiplier.",
    "noise[].derivative": "Term of how the error moves, in the logarithm of the multiplier.",
    "noise[].error": "Quality above plan, mean of the last five measurements; below 0 it lags.",
    "noise[].quality": "Combined quality, 0 to 1, of what was known then.",
    "noise[].target": "Quality that the plan expected.",
    "noise[].clamped_by": "What kept the share from moving further.",
    "noise[].why": "Why the noise moved.",
    "releases[].kind": "What was released.",
    "releases[].stage": "The measurement that it belongs to; 1 where it comes once.",
    "releases[].stddev": "Standard deviation of the noise of one count at one site, the largest of any site, in units.",
    "quality.frechet[].stage": "The measurement before which it was known.",
    "quality.frechet[].ratio": "Fréchet distance to the releases, less their noise, over that before training; free.",
    "quality.accuracy": "Share of held-out units that look more real to the neural critic than half of the fakes.",
    "quality.validation[].stage": "The measurement after which held-out units were asked.",
    "quality.validation[].auc": "How well a classifier taught by synthetic rows ranks held-out units; bought.",
    "quality.validation[].standard_error": "Of that AUC, by the noise that it was bought with.",
    "quality.losses[].round": "Number of the round.",
    "quality.losses[].discriminator": "Which discriminator.",
    "quality.losses[].value": "Distance of the generator from the releases, in noise variances a cell; free.",
    "quality.frechet_ratio_floor": "The Fréchet ratio of a generator as near to the releases as the truth is.",
    "quality.frechet_ratio_start": "The Fréchet ratio before the first step of training.",
    "quality.accuracy_floor": "That share of a guess: synthetic and real cannot be told apart.",
    "quality.accuracy_ceiling": "That share where they are told apart always.",
    "quality.auc_floor": "AUC of a guess.",
    "quality.auc_ceiling": "AUC that counts as quality 1, by the study's public expectation.",
    "quality.loss_floor": "Loss at which all that is left is noise: as near as the truth itself.",
    "sites[].site": "Name of the site.",
    "sites[].status": "invited, admitted or revoked, as the coordinator's record has it.",
    "sites[].last_seen": "When its last answer came.",
    "sites[].missed": "Questions without a good answer since then: how far it lags.",
    "sites[].dropped": "Answers of the whole run that were refused or did not come.",
    "sites[].last_fault": "Why the last of them did not count.",
    "sites[].ledger_sequence": "Number of the newest entry of its ledger, as the site signed it.",
    "sites[].ledger_hash": "Hash of that entry; peers witness it.",
    "sites[].attested_by": "Peers that signed, at the end of the run, the newest head of its ledger that they saw.",
    "sites[].certificate_days": "Days for which its TLS certificate is in force.",
    "coordinator.certificate_days": "Days for which the coordinator's own TLS certificate is in force.",
    "events[].time": "When it happened.",
    "events[].event": "opened, answered, step, paused, resumed, stopped or closed.",
    "events[].what": "The step, or the question that was answered.",
    "events[].sites[].site": "Who answered, or did not.",
    "events[].sites[].ledger_sequence": "Entry of its ledger at that moment.",
    "events[].sites[].ledger_hash": "Hash of that entry.",
    "events[].sites[].fault": "Why its answer did not count.",
    "gates[].id": "Name of the gate, as in the study's section `gates`.",
    "gates[].rule": "What must hold before anything is published.",
    "gates[].value": "What was found, or is so far.",
    "gates[].threshold": "Of the study.",
    "gates[].state": "passed, failed, open (not decided yet), or simulation (needs real rows: checked there alone).",
}
"""Every field and what it says; a field that is not here is in no snapshot."""


@dataclass(frozen=True)
class _Held:
    """What the coordinator holds of a run, as it was read."""

    folder: Path | None
    home: Path | None
    study: Study
    facts: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    roster: Roster | None
    days: Mapping[str, int]
    method: str
    certificate: Mapping[str, Any]

    @property
    def decided(self) -> list[Mapping[str, Any]]:
        """What the noise controller decided, stage by stage."""
        return [step for step in self.steps if step.get("step") == "noise"]

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """The rounds that ended."""
        return [step for step in self.steps if step.get("step") == "round"]

    @property
    def measured(self) -> int:
        """Measurements of which something came."""
        released = [step for step in self.steps if step.get("noise_stddev") and kind_of(step) not in _ASIDE]
        return len({stage_of(step) for step in released})

    @property
    def is_simulated(self) -> bool:
        return self.folder is not None and self.home is None


def find_run(path: Path) -> Path | None:
    """The run in a folder: itself, or the newest of a coordinator's home; None where a home has none yet.

    Raises:
        CheckpointError: it is neither.
    """
    if (path / "study.lock.yaml").exists():
        return path
    if not (path / MEMBERS).exists():
        raise CheckpointError(f"{path}: neither the folder of a run nor a coordinator's home")
    starts = list((path / "runs").glob("*/start.json"))
    return max(starts, key=lambda start: start.stat().st_mtime).parent if starts else None


def snapshot_of(path: Path, *, now: datetime) -> dict[str, Any]:
    """What may be shown of a run: the fields of `MEANINGS`.

    Args:
        path: the folder of a run, simulated or live, or a coordinator's home, whose newest run is taken.
        now: the moment, for what is counted in days.

    Raises:
        CheckpointError: it is neither, or its checkpoint cannot be read.
        StudyError: its study is not valid.
    """
    held = _read(path, now)
    run = _run(held)
    budget = _budget(held, is_over=run["state"] in _DONE)
    sites = _sites(held)
    return {
        "schema": SNAPSHOT_SCHEMA,
        "study": _study(held.study),
        "run": run,
        "verdict": _verdict(run, sites, held),
        "budget": budget,
        "noise": [_decision(held.study, *pair) for pair in _pairs(held.decided)],
        "releases": _releases(held),
        "quality": _quality(held),
        "sites": sites,
        "coordinator": {"certificate_days": held.days.get("(server)")},
        "events": [_event(event) for event in held.events[-_TAIL:]],
        "gates": _gates(held, run["state"]),
    }


def _read(path: Path, now: datetime) -> _Held:
    folder = find_run(path)
    home = path if (path / MEMBERS).exists() else None
    method = "privshare"
    if folder is not None and (folder / "start.json").exists():
        home = home or read_start(folder).home
    elif folder is not None:
        method = _method(folder)
    try:
        roster, days = (read_roster(home), days_of(home, now=now)) if home is not None else (None, {})
    except PrivShareError:  # a run that was carried to another machine is looked at without its members
        roster, days = None, {}
    if folder is None:
        assert home is not None  # or find_run had raised
        return _Held(None, home, load_study(home / "study.yaml"), {}, [], [], roster, days, method, {})
    facts = latest_facts(folder / "checkpoints") or {}
    study = load_study(folder / "study.lock.yaml")
    if facts and facts.get("study") != study.digest():
        raise StudyError(f"{folder}: its checkpoints are of another study")
    steps, events, certificate = _lines(folder), read_journal(folder), _certificate(folder)
    return _Held(folder, home, study, facts, steps, events, roster, days, method, certificate)


def _certificate(folder: Path) -> dict[str, Any]:
    """The certificate as it is; whether it is true, `privshare verify` finds out."""
    try:
        return dict(json.loads((folder / "certificate.json").read_bytes()))
    except (OSError, ValueError):
        return {}


def _method(folder: Path) -> str:
    """The method of a simulated run."""
    try:
        return str(json.loads((folder / "options.json").read_bytes())["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _lines(folder: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    except ValueError:
        raise CheckpointError(f"{folder / 'rounds.jsonl'}: not JSON lines") from None


def _study(study: Study) -> dict[str, Any]:
    return {
        "name": study.name,
        "digest": study.digest(),
        "unit": study.unit.name,
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "accountant": str(study.accountant.as_dict()["kind"]),
        "noise_trust": study.privacy.noise_trust,
    }


# --- the run


def _run(held: _Held) -> dict[str, Any]:
    study, stage, done = held.study, held.measured, len(held.trained)
    outcome = read_outcome(held.folder) if held.folder is not None else None
    state = _state(held)
    durations = _durations(held.events)
    whole = study.rounds.count + study.noise.rounds
    used = held.steps[-1].get("budget_used") if held.steps else None
    return {
        "name": held.facts.get("run"),
        "state": state,
        "is_simulated": held.is_simulated,
        "stage": stage,
        "stages": study.noise.rounds,
        "round": done,
        "rounds": study.rounds.count,
        "progress": 1.0 if state in _DONE else min(1.0, (stage + done) / whole),
        "eta_seconds": _eta(held, durations) if state in ("running", "pausing", "stopping", "paused") else None,
        "last_step": held.steps[-1].get("step") if held.steps else None,
        "last_step_at": _last_step_at(held),
        "stale_after": max(_PATIENCE, 3 * max(durations.values(), default=0.0)) if state == "running" else None,
        "began_at": held.events[0]["time"] if held.events else None,
        "budget_used": used if is_number(used) else None,
        "code": outcome.code if outcome is not None else 0 if state == "published" else None,
        "message": outcome.message if outcome is not None else None,
        "void_because": _void_because(held),
    }


def _state(held: _Held) -> str:
    if held.folder is None:
        return "waiting"
    outcome, is_published = read_outcome(held.folder), (held.folder / "certificate.json").exists()
    if outcome is not None:
        ended = "published" if is_published else "measured"
        return {int(ExitCode.OK): ended, int(ExitCode.STOPPED): "stopped"}.get(outcome.code, "failed")
    return "published" if is_published else _state_of_unfinished(held, held.folder)


def _state_of_unfinished(held: _Held, folder: Path) -> str:
    last = held.events[-1]["event"] if held.events else ""
    wish, is_running = asked(folder), is_held(folder)
    if wish == "pause":
        return "paused" if last == "paused" or not is_running else "pausing"
    if wish == "stop":
        return "stopping"
    idle = "lost" if held.steps or held.events else "waiting"
    return "running" if is_running else idle


def _last_step_at(held: _Held) -> str | None:
    """By the journal, or else by the file of steps, which changes with every step."""
    times = [str(event["time"]) for event in held.events if event["event"] == "step"]
    if times or held.folder is None:
        return times[-1] if times else None
    try:
        changed = (held.folder / "rounds.jsonl").stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(changed).astimezone().isoformat(timespec="seconds")


def _durations(events: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """Seconds of each step, by its number and name; time in which nothing ran is left out."""
    found: dict[tuple[int, str], float] = {}
    before: datetime | None = None
    for event in events:
        at = datetime.fromisoformat(event["time"])
        if event["event"] == "step" and before is not None:
            found[int(event.get("number", 0)), str(event.get("step"))] = (at - before).total_seconds()
        if event["event"] in ("opened", "resumed", "step"):
            before = at
        elif event["event"] in ("paused", "stopped", "closed"):
            before = None
    return found


def _eta(held: _Held, durations: Mapping[tuple[int, str], float]) -> float | None:
    """Seconds to the last round; None before a round was timed."""
    rounds = [seconds for (_, step), seconds in durations.items() if step == "round"]
    others = [seconds for (_, step), seconds in durations.items() if step not in ("round", "one_way")]
    stages = held.measured
    if not rounds or not stages:
        return None
    study = held.study
    left = max(0, study.rounds.count - len(held.trained)), max(0, study.noise.rounds - stages)
    return left[0] * median(rounds) + left[1] * sum(others) / stages


def _void_because(held: _Held) -> str | None:
    events = [event for release in held.facts.get("releases", {}).values() for event in release["events"].values()]
    if any(event.get("noise") != "csprng" for event in events):
        return "noise from a seed, which is a test mode: nothing here is private"
    if held.method not in ("privshare", "local-only", "fl-dp", "dp-lr"):
        return "a simulation of a method without privacy"
    return None


def _again(held: _Held) -> str:
    """The command that goes on with a run."""
    return "`python simulations/run.py --resume`" if held.is_simulated else "`privshare start`"


def _verdict(run: Mapping[str, Any], sites: Sequence[Mapping[str, Any]], held: _Held) -> dict[str, str]:
    state = run["state"]
    late = [site["site"] for site in sites if site["missed"]]
    expiring = [name for name, days in held.days.items() if days < WARN_DAYS]
    done = f"{run['stage']} of {run['stages']} measurements and {run['round']} of {run['rounds']} rounds are done"
    tone, word, sentence = {
        "waiting": ("attention", "Not begun", "No run was started yet."),
        "running": ("good", "Running", f"{done}."),
        "pausing": ("attention", "Pausing", f"It pauses after the step that is going on; {done}."),
        "stopping": ("attention", "Stopping", f"It stops after the step that is going on; {done}."),
        "paused": ("attention", "Paused", f"Nothing is asked of sites until `privshare resume`; {done}."),
        "stopped": ("attention", "Stopped", f"It goes on where it was when it is started again; {done}."),
        "lost": ("alarm", "Not running", f"No program runs it now; {_again(held)} goes on where it was; {done}."),
        "failed": ("alarm", "Failed", f"{run['message']}."),
        "published": ("good", "Published", "The release and its certificate are in the folder of the run."),
        "measured": ("good", "Measured", "What was made is compared in the folder of the run; nothing is published."),
    }[state]
    if run["void_because"] is not None:
        return {"tone": "alarm", "word": f"{word}, no guarantee", "sentence": f"{run['void_because']}. {sentence}"}
    if state == "running" and late:
        tone, sentence = "attention", f"{sentence} No good answer from {', '.join(late)}."
    if state == "running" and expiring:
        names = ", ".join("the coordinator" if name == "(server)" else name for name in expiring)
        tone, sentence = "attention", f"{sentence} Certificates run out in less than {WARN_DAYS} days: {names}."
    return {"tone": tone, "word": word, "sentence": sentence}


# --- budget and noise


def _budget(held: _Held, *, is_over: bool) -> list[dict[str, Any]]:
    privacy, noise, accountant = held.study.privacy, held.study.noise, held.study.accountant
    planned = {
        "train": privacy.one_way_share + (1 - privacy.one_way_share) * min(1.0, noise.rounds * noise.max_share),
        "holdout": 1.0 if privacy.holdout else 0.0,
    }
    spent: Mapping[str, Mapping[str, float]] = held.facts.get("spent", {})
    found = []
    for site, account in sorted(held.facts.get("accounts", {}).items()):
        bound = float(account["bound"])

        def epsilon(share: float, bound: float = bound) -> float:
            return float(accountant.epsilon(spent=min(share, 1.0) * bound, delta=privacy.delta)) if share > 0 else 0.0

        for name, end in planned.items():
            if not end:
                continue
            own = float(spent.get(site, {}).get(name, 0.0))
            most = max((float(one.get(name, 0.0)) for one in spent.values()), default=0.0)
            projected = own if is_over else min(1.0, own + max(0.0, end - most))
            found.append(
                {
                    "site": site,
                    "account": name,
                    "spent": own,
                    "projected": projected,
                    "epsilon_spent": epsilon(own),
                    "epsilon_projected": epsilon(projected),
                    "epsilon_cap": epsilon(1.0),
                }
            )
    return found


def _pairs(decided: Sequence[Mapping[str, Any]]) -> Iterable[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    return zip(decided, [None, *decided], strict=False)


_TERMS: Final = (
    *("stage", "share", "prior", "multiplier", "proportional", "integral", "derivative"),
    *("error", "quality", "target", "clamped_by"),
)
_CLAMPS: Final = {
    "multiplier": "the controller is at its limit",
    "floor": "no measurement may spend more than noise.max_share",
    "slew": f"noise moves by at most a factor {SLEW:g} from one measurement to the next",
    "reach": "the budget has to end exactly with the last measurement",
}


def _decision(study: Study, now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**{name: now.get(name) for name in _TERMS}, "why": _why(study, now, before)}


def _why(study: Study, now: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """Why the noise of a measurement is another than that of the one before, in a sentence."""
    if before is None:
        return "The first measurement has the share that the plan gives it; nothing is known of the quality yet."
    factor = math.sqrt(before["share"] / now["share"])
    moved = (
        f"Noise {'falls' if factor < 1 else 'rises'} by {100 * abs(1 - factor):.0f} %"
        if abs(1 - factor) >= 0.005
        else ""
    )
    parts = [f"the plan asks for {now['prior'] / before['prior']:.2f} times the spend"]
    if study.noise.schedule != "pid":
        parts.append(f"and the schedule is {study.noise.schedule}, which does not react to quality")
    elif now.get("quality") is None and not now.get("error"):
        parts.append("and no quality was known to react to")
    else:
        side = "above" if now["error"] >= 0 else "below"
        parts.append(f"quality is {abs(now['error']):.3f} {side} plan, which multiplies it by {now['multiplier']:.2f}")
    parts += [_CLAMPS[name] for name in now.get("clamped_by") or [] if name in _CLAMPS]
    return f"{moved or 'Noise stays as it was'}: {'; '.join(parts)}."


def _releases(held: _Held) -> list[dict[str, Any]]:
    """Noise of each kind of release by stage; of a mechanism that releases many times a stage, the largest."""
    found: dict[tuple[str, int], float] = {}
    for step in held.steps:
        if step.get("noise_stddev"):
            key = kind_of(step), stage_of(step) or 1
            found[key] = max([*step["noise_stddev"].values(), found.get(key, 0.0)])
    return [{"kind": kind, "stage": stage, "stddev": stddev} for (kind, stage), stddev in sorted(found.items())]


def _quality(held: _Held) -> dict[str, Any]:
    known = held.method in _OPEN_METHODS
    ratios = [(step["stage"], (step.get("inputs") or {}).get("frechet_ratio")) for step in held.decided]
    bought = [step for step in held.steps if step.get("step") == "monitor_result"]
    losses = [(step, name, loss) for step in held.trained for name, loss in (step.get("losses") or {}).items()]
    return {
        "frechet": [{"stage": stage, "ratio": ratio if is_number(ratio) else None} for stage, ratio in ratios if known],
        "accuracy": held.facts.get("accuracy") if known else None,
        "validation": [
            {"stage": step["stage"], "auc": step.get("auc"), "standard_error": step.get("standard_error")}
            for step in bought
            if known
        ],
        "losses": [
            {"round": step["round"], "discriminator": name, "value": loss}
            for step, name, loss in losses
            if known and is_number(loss)
        ],
        "frechet_ratio_floor": 0.0,
        "frechet_ratio_start": 1.0,
        "accuracy_floor": 0.5,
        "accuracy_ceiling": 1.0,
        "auc_floor": 0.5,
        "auc_ceiling": held.study.noise.reference_auc,
        "loss_floor": 1.0,
    }


# --- sites, events, gates


def _sites(held: _Held) -> list[dict[str, Any]]:
    accounts: Mapping[str, Any] = held.facts.get("accounts", {})
    members = held.roster.members if held.roster is not None else {}
    certified: Mapping[str, Any] = held.certificate.get("sites", {})
    answered = [event for event in held.events if event["event"] == "answered"]
    found = []
    for site in sorted({*accounts, *members}):
        told = [event for event in answered if site in event.get("sites", []) or site in event.get("failed", {})]
        good = [at for at, event in enumerate(told) if site in event.get("sites", [])]
        faults = [event["failed"][site] for event in told if site in event.get("failed", {})]
        if not answered:  # a run of before there were events: what rounds.jsonl says of faults
            faults = [step["sites"][site] for step in held.steps if site in _rejected(step)]
        own = certified.get(site) or accounts.get(site) or {}
        head, attested = own.get("ledger_head") or {}, {one["witness"] for one in own.get("attestations") or []}
        found.append(
            {
                "site": site,
                "status": members[site].status if site in members else None,
                "last_seen": told[good[-1]]["time"] if good else None,
                "missed": len(told) - 1 - good[-1] if good else len(told),
                "dropped": len(faults),
                "last_fault": str(faults[-1]) if faults else None,
                "ledger_sequence": head.get("sequence"),
                "ledger_hash": head.get("hash"),
                "attested_by": len(attested) if site in certified else None,
                "certificate_days": held.days.get(site),
            }
        )
    return found


def _rejected(step: Mapping[str, Any]) -> Mapping[str, Any]:
    return step.get("sites") or {} if step.get("step") == "rejected" else {}


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    heads, faults = event.get("heads") or {}, event.get("failed") or {}
    names = sorted({*event.get("sites", []), *faults})
    return {
        "time": event["time"],
        "event": event["event"],
        "what": str(event.get("step") or event.get("request") or event.get("run") or ""),
        "sites": [
            {
                "site": name,
                "ledger_sequence": heads[name][0] if name in heads else None,
                "ledger_hash": heads[name][1] if name in heads else None,
                "fault": faults.get(name),
            }
            for name in names
        ],
    }


@dataclass(frozen=True)
class _Known:
    """What gates look at, of a checkpoint."""

    losses: Mapping[str, float]
    monitor: Mapping[str, float | None] | None


def _gates(held: _Held, state: str) -> list[dict[str, Any]]:
    """What a coordinator can check, and the names of what only a simulation can."""
    study, facts = held.study, held.facts
    is_over = state in (*_DONE, "failed") and len(held.trained) >= study.rounds.count
    validations = facts.get("validations") or {}
    # The last one counts; it is in the checkpoint before the run says that it is the last.
    monitor = facts.get("monitor") or validations.get(f"monitor-{study.noise.rounds}")
    found = []
    for gate in gates_of(study, _Known(facts.get("losses") or {}, monitor)):
        verdict = ("passed" if gate.passed else "failed") if is_over else "open"
        found.append(
            {"id": gate.id, "rule": gate.rule, "value": gate.value, "threshold": gate.threshold, "state": verdict}
        )
    for name in ("utility_gap", "membership_advantage", "attribute_residual"):
        if (threshold := getattr(study.gates, name)) is not None:
            rule = f"at most {threshold:g}; compares with real rows, which a coordinator does not have"
            found.append({"id": name, "rule": rule, "value": None, "threshold": threshold, "state": "simulation"})
    return found
