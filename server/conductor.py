"""What every run at the coordinator does, whatever it learns: roll call, witnesses, masks, one-way tables, records.

It asks; every site decides for itself. Nothing here sees a row, and no guarantee rests on what happens here.
"""

import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from common.data.encoding import make_grids
from common.data.histograms import resolutions
from common.data.tables import TableLayout
from common.data.units import WINDOW_WEIGHT, unit_weight
from common.errors import CheckpointError, ExitCode, ProtocolError
from common.models.releases import Bins, Release, bins_from, one_way_layout
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Head
from common.privacy.spending import Spending
from common.privacy.witness import Attestation, Statement, is_newer
from common.study import Study
from common.wire.messages import HELD_OUT, KEPT, Reply, Request
from common.wire.secure_sum import Participants
from server.aggregation import add_up, check_release
from server.checkpoints import load_latest, save_checkpoint, write_file
from server.exchange import Answers, Credentials, Exchange, Roster, call_roll
from server.journal import Journal
from server.plausibility import MOST_NOISE, Form, check_counts, check_event, check_units, state_units
from server.run_folder import heed
from server.run_state import RunState, SiteAccount, checkpoint_of, mask_of, restore

_LOG = logging.getLogger(__name__)
_Outcome = TypeVar("_Outcome")


class Conductor(ABC, Generic[_Outcome]):
    """Conducts one run of a study over the sites that an exchange reaches; a subclass says what is learned."""

    def __init__(
        self,
        study: Study,
        *,
        folder: Path,
        run: str,
        seed: int,
        credentials: Credentials,
        device: torch.device,
        on_step: Callable[[dict[str, Any]], None],
    ) -> None:
        """Prepare a run, or take up the one in `folder`.

        Args:
            study: the study that the sites approved.
            folder: of the run; checkpoints and rounds.jsonl go there.
            run: names the run for ever.
            seed: of models and latents, not of privacy noise.
            credentials: with the members of the federation: all must answer, or the study's quorum.
            device: where to refine the generator.
            on_step: is told of every step that ended, with what rounds.jsonl gets.

        Raises:
            CheckpointError: the folder holds a run of another study, name or seed.
        """
        self._study = study
        self._folder = folder
        self._credentials = credentials
        self._quorum = min(study.rounds.quorum or len(credentials.sites), len(credentials.sites))
        self._device = device
        self._on_step = on_step
        self._grids, self._channels = make_grids(study.measured), make_grids(study.channels)
        self._classes = len(study.label_values)
        self._nonces: dict[str, str] = {}
        self._witnesses: dict[str, frozenset[str]] = {}
        self._masks: Participants | None = None
        self._journal = Journal(folder)
        self._state = RunState(run=run, seed=seed, study=study.digest())
        latest = load_latest(folder / "checkpoints")
        if latest is not None:
            self._state = restore(latest, expected=self._state)

    def run(self, exchange: Exchange) -> _Outcome:
        """The whole run, from wherever it stands.

        Between two steps it pauses or stops where its folder asks for that; see `server.run_folder`.

        Raises:
            StoppedError: it was asked to stop. What is on disk is all that it had.
        """
        state = self._state
        self._journal.note("opened", run=state.run, study=state.study, steps=len(state.history))
        self._write_history()
        heed(self._folder, self._journal)
        roster = self._call_roll(exchange)
        self._pass_on(roster)
        self._agree_on_masks(roster)
        bins = self._measure_one_way(roster)
        roster = roster.only(self._state.accounts)
        trained = self._learn(roster, bins)
        self._close(roster)
        self._journal.note("closed")
        return trained

    def _call_roll(self, exchange: Exchange) -> Roster:
        """The sites of the run that are there: of a new one those that answer well, of an old one its own.

        Raises:
            PrivShareError: too few.
            CheckpointError: there are others than the run began with.
        """
        state = self._state
        began = set(state.accounts) if state.releases else set()
        roster, answers = call_roll(exchange, self._request("describe", "describe"), self._credentials)
        replies = self._noted("describe", answers).of_at_least(self._quorum)
        members = began or set(replies)
        if not members <= set(self._credentials.sites) or len(members & set(replies)) < self._quorum:
            raise CheckpointError("sites: the run began with other sites")
        state.accounts = {site: account for site, account in state.accounts.items() if site in members}
        return roster.only(members & set(replies))

    def _measure_one_way(self, roster: Roster) -> Bins:
        layout = one_way_layout(self._study)
        # A unit is in every table of a column of the record; its steps need not be in those of channels.
        columns = sum(len(resolutions(grid)) for grid in self._grids)
        form = self._form(layout, whole=[number < columns for number in range(layout.n_tables)])
        options = {"share": self._study.privacy.one_way_share}
        release = self._measure(roster, "one_way", "one_way", options, {}, form)
        return bins_from(release, self._study)

    def _form(
        self,
        layout: TableLayout,
        *,
        emphasis: Sequence[int] | None = None,
        whole: Sequence[bool] = (),
        held_out: float = 0.0,
    ) -> Form:
        """Of a release of tables of this study's units."""
        scale = unit_weight(self._study.unit.max_records) * (1 if self._study.windows is None else WINDOW_WEIGHT)
        return Form.of_tables(layout, scale=scale, emphasis=emphasis, whole=whole, held_out=held_out)

    @abstractmethod
    def _learn(self, roster: Roster, bins: Bins) -> _Outcome:
        """What is learned once the bins are known."""

    @property
    def _is_local(self) -> bool:
        """Whether the discriminators stay at the sites, and only generators meet here."""
        return self._study.discriminators.scope == "local"

    @property
    def _bound(self) -> float:
        """The budget of a site that narrows the study by nothing, as the study's accountant counts."""
        privacy = self._study.privacy
        return self._study.accountant.bound(epsilon=privacy.epsilon, delta=privacy.delta)

    @property
    def _is_strict(self) -> bool:
        """Whether every member must answer everything."""
        return self._quorum == len(self._credentials.sites)

    def _measure(
        self,
        roster: Roster,
        kind: str,
        name: str,
        options: dict[str, Any],
        arrays: dict[str, np.ndarray],
        form: Form,
    ) -> Release:
        """A release of all sites, or the one that was made under this name before the run was interrupted."""
        state, cells = self._state, form.cells
        kept, masks = self._is_local and kind in KEPT, self._masks
        if masks is not None:
            options = {**options, "participants": masks.digest}
        if name not in state.releases:
            requests = {site: self._request(kind, name, options, arrays) for site in roster.names}

            def check(site: str, reply: Reply) -> None:
                event = check_release(site, reply, cells=cells, kept=kept, masks=masks)
                self._check_event(site, event, kind, options["share"], form)
                if not kept and masks is None:  # what is masked or kept can be anything
                    self._check_counts(site, kind, reply, event, form)

            answers = self._ask_confirmed(roster, requests, check)
            replies = answers.of_at_least(self._quorum)
            release = add_up(replies, cells=cells, kept=kept, masks=masks)
            if kind == "one_way" and masks is None:
                state.units = {
                    site: state_units(reply.arrays["counts"], release.events[site], form)
                    for site, reply in replies.items()
                }
            # Under masks nobody is missing, and nothing tells what one of them weighs.
            state.releases[name] = self._weighed(kind, release, replies) if masks is None else release
            for site, event in state.releases[name].events.items():
                spent = state.spent.setdefault(site, {"train": 0.0, "holdout": 0.0})
                spent[event.account] += self._study.accountant.spend(event) / state.accounts[site].bound
            self._pass_on(roster)
            stddev = {site: event.noise_stddev / event.scale for site, event in state.releases[name].events.items()}
            self._record({"step": name, "cells": cells, "noise_stddev": stddev})
        release = state.releases[name]
        if len(release.counts) != cells:
            raise CheckpointError("the checkpoint's release does not fit the study")
        return release

    def _check_event(self, site: str, event: GaussianEvent, kind: str, share: float, form: Form) -> None:
        """Refuse an event that another request than the one for this release would have bought.

        Raises:
            ProtocolError: it is.
        """
        accountant, spend = self._study.accountant, share * self._state.accounts[site].bound
        account = "holdout" if kind in HELD_OUT else "train"
        if event.account != account or not accountant.spend(event) <= spend * (1 + 1e-9):
            raise ProtocolError(f"site {site}: spent another budget than it was asked to, or more")
        bought = accountant.noise_stddev(
            squared_sensitivity=form.squared_sensitivity, spend=share * self._bound, sampling=form.sampling
        )
        check_event(site, event, form, bought=bought)

    def _check_counts(self, site: str, kind: str, reply: Reply, event: GaussianEvent, form: Form) -> None:
        """Refuse what the units that a site states cannot make; the one-way tables state them.

        Raises:
            ProtocolError: they cannot, or are more than any site has.
        """
        counts = reply.arrays["counts"]
        units = state_units(counts, event, form) if kind == "one_way" else self._state.units[site]
        check_units(site, units, most=self._study.rounds.site_units)
        check_counts(site, counts, event, form, units)

    def _weighed(self, kind: str, release: Release, replies: Mapping[str, Reply]) -> Release:
        """A release as it stands for all sites of the run: those that it lacks are taken to be like the others.

        The first one fixes who is in the run, and what each weighs.
        """
        state = self._state
        if kind == "one_way":
            state.accounts = {site: account for site, account in state.accounts.items() if site in replies}
        factor = sum(one.total for one in state.units.values()) / sum(state.units[site].total for site in replies)
        return (
            release
            if factor == 1
            else replace(release, counts=release.counts * factor, variance=release.variance * factor**2)
        )

    def _ask_confirmed(
        self, roster: Roster, requests: dict[str, Request], check: Callable[[str, Reply], object]
    ) -> Answers:
        """Ask for releases; sites that started anew since the roll call are confirmed by the others first."""
        answers = self._ask(roster, requests, check)
        anew = (ExitCode.UNCONFIRMED, ExitCode.UNMASKED)
        again = {site: requests[site] for site, fault in answers.failures.items() if fault.code in anew}
        if not again:
            return answers
        described = self._ask(roster, dict.fromkeys(roster.names, self._request("describe", "describe")))
        if self._masks is not None:
            described.whole()
        self._pass_on(roster)
        self._agree_on_masks(roster)
        later = self._ask(roster, again, check)
        failures = {site: fault for site, fault in answers.failures.items() if site not in again}
        return Answers(
            dict(sorted((answers.replies | later.replies).items())), dict(sorted((failures | later.failures).items()))
        )

    def _ask(
        self, roster: Roster, requests: Mapping[str, Request], check: Callable[[str, Reply], object] | None = None
    ) -> Answers:
        """Ask sites, and keep what they say of themselves; what does not pass is on record, with its code."""
        answers = roster.ask(requests)
        if check is not None:
            answers = answers.checked(check)
        return self._noted(next(iter(requests.values())).name, answers) if requests else answers

    def _noted(self, request: str, answers: Answers) -> Answers:
        """Keep what sites say of themselves; a reply that contradicts what one said before is a failure."""
        answers = answers.checked(self._take_note)
        codes = {site: fault.code.name for site, fault in answers.failures.items()}
        known = self._state.accounts
        heads = {site: [head.sequence, head.hash] for site in answers.replies if (head := _known_head(known, site))}
        self._journal.note("answered", request=request, sites=sorted(answers.replies), heads=heads, failed=codes)
        if codes and not self._is_strict:
            self._record({"step": "rejected", "request": request, "sites": codes})
        return answers

    def _take_note(self, site: str, reply: Reply) -> None:
        """Keep what a site says of itself: at the roll call all of it, later the newest head of its ledger.

        Raises:
            ProtocolError: it has another key or budget than before, or its ledger went back.
        """
        facts, accounts = reply.facts, self._state.accounts
        if "ledger_head" not in facts:
            return
        known, said, spending = accounts.get(site), _head_of(site, reply), _spending_of(site, reply)
        if "key" in facts:
            account = _account_of(site, reply, said, spending, public=self._credentials.sites[site])
            if account.bound * MOST_NOISE**2 < self._bound:  # said before anybody has spent; see `check_event`
                raise ProtocolError(
                    f"site {site}: its budget buys more than {MOST_NOISE:g} times the noise that the study asks for; "
                    "raise max_epsilon in its policy, or lower the study's epsilon"
                )
            if self._is_masked and account.mask is None:
                raise ProtocolError(f"site {site}: announced no key for masks")
            if known is not None and known.mask != account.mask:
                raise ProtocolError(
                    f"site {site}: has another key for masks than when the run began, and what was masked with the old "
                    "one cannot be added up; start a new run"
                )
            if known is not None and (known.bound, known.key) != (account.bound, account.key):
                raise ProtocolError(f"site {site}: has another key or budget than when the run began")
            known = known or account
        # The roll call comes first.
        if known is None or said.site != site or not said.is_by(known.key):
            raise ProtocolError(f"site {site}: its ledger's head is not signed by it")
        self._check_spending(spending, said, known)
        # The reply to a request that is asked again is as old as its first one.
        is_older = not is_newer(said, known.ledger_head) and said.sequence < known.ledger_head.sequence
        if "key" in facts and is_older:
            raise ProtocolError(f"site {site}: its ledger lacks entries that it had before; it was restored or copied")
        if "key" in facts:
            self._nonces[site] = str(facts.get("nonce"))
            self._witnesses[site] = _witnesses_of(site, facts, members=self._credentials.sites)
        accounts[site] = known if is_older else replace(known, ledger_head=said, spending=spending)

    def _check_spending(self, spending: Spending, head: Statement, known: SiteAccount) -> None:
        """Refuse what a site says of its spending unless it holds for the head, the run and all that it said before.

        Raises:
            ProtocolError: it does not.
        """
        expected = (head.site, self._state.study, Head(head.ledger, head.sequence, head.hash), known.bound)
        said = (spending.site, spending.study, spending.head, spending.bound)
        before, now = sorted((known.spending.events, spending.events), key=len)
        if said != expected or now[: len(before)] != before or not spending.is_by(known.key):
            raise ProtocolError(f"site {head.site}: what it says that it has spent is not so, or not signed by it")

    def _pass_on(self, roster: Roster) -> None:
        """Have every site witness the others' ledgers, and tell each what the others attest of its own."""
        found = self._attested(roster, self._nonces)
        confirms = {
            site: self._request("confirm", "confirm", {"attestations": [one.as_dict() for one in own]})
            for site, own in found.items()
        }
        self._ask(roster, confirms).of_at_least(self._quorum)

    @property
    def _is_masked(self) -> bool:
        """Whether sites mask what they release."""
        return self._study.privacy.noise_trust != "local"

    def _agree_on_masks(self, roster: Roster) -> None:
        """Tell every site who masks in the run, and with which key."""
        if not self._is_masked:
            return
        said = [account.mask for account in self._state.accounts.values() if account.mask is not None]
        peers = self._credentials.sites
        # What a site will refuse is better said here, where somebody reads it.
        self._masks = Participants.verified(said, own=said[0], peers=peers)
        announcements = [asdict(one) for one in self._masks.announcements]
        request = self._request("masks", "masks", {"announcements": announcements})
        self._ask(roster, dict.fromkeys(roster.names, request)).whole()

    def _close(self, roster: Roster) -> None:
        """The last heads of all ledgers and what the others attest of them, for the certificate."""
        request = self._request("describe", "describe")
        self._ask(roster, dict.fromkeys(roster.names, request)).of_at_least(self._quorum)
        for site, own in self._attested(roster, {}).items():
            self._state.accounts[site] = replace(self._state.accounts[site], attestations=own)
        if self._is_masked:  # a site that does not hear of it keeps its key until the next run
            self._ask(roster, dict.fromkeys(roster.names, self._request("masks", "masks", {"announcements": []})))

    def _attested(self, roster: Roster, nonces: dict[str, str]) -> dict[str, tuple[Attestation, ...]]:
        """What the others attest of each site's ledger, once they have seen its newest head."""
        accounts = self._state.accounts
        heads = {site: account.ledger_head.as_dict() for site, account in accounts.items()}
        asked: dict[str, list[str]] = {site: [site] for site in roster.names}
        for site in heads:
            for witness in self._witnesses.get(site, asked):
                if witness != site and witness in asked:
                    asked[witness].append(site)
        requests = {
            witness: self._request(
                "witness",
                "witness",
                {
                    "heads": [heads[site] for site in sites if site in heads],
                    "nonces": {site: nonces[site] for site in sites if site in nonces},
                },
            )
            for witness, sites in asked.items()
        }
        answers = self._ask(roster, requests, self._check_attestations)
        found: dict[str, list[Attestation]] = {site: [] for site in roster.names if site in accounts}
        for witness, reply in answers.of_at_least(self._quorum).items():
            for one in _attestations_of(witness, reply):
                if one.site in found:
                    found[one.site].append(one)
        return {site: tuple(own) for site, own in found.items()}

    def _check_attestations(self, site: str, reply: Reply) -> None:
        """Refuse what a site did not sign itself: the certificate shows it as the site's word.

        Raises:
            ProtocolError: any of them.
        """
        public = self._credentials.sites[site]
        if not all(one.witness == site and one.is_by(public) for one in _attestations_of(site, reply)):
            raise ProtocolError(f"site {site}: attestations that it did not sign")

    def _record(self, line: dict[str, Any]) -> None:
        """Checkpoint first, then tell: what is in rounds.jsonl can be resumed from."""
        state = self._state
        line["budget_used"] = state.budget_used
        state.history.append(line)
        save_checkpoint(self._folder / "checkpoints", len(state.history), checkpoint_of(state))
        self._write_history()
        self._journal.note("step", step=line["step"], number=len(state.history), budget_used=line["budget_used"])
        self._on_step(line)
        heed(self._folder, self._journal)

    def _write_history(self) -> None:
        """rounds.jsonl; also of a run that is taken up, which may have ended between a checkpoint and its line."""
        lines = "".join(json.dumps(one, allow_nan=False) + "\n" for one in self._state.history)
        if lines:
            write_file(self._folder / "rounds.jsonl", lines.encode())

    def _request(
        self,
        kind: str,
        name: str,
        options: dict[str, Any] | None = None,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> Request:
        return Request(kind, self._state.study, self._state.run, name, options or {}, arrays or {})

    def _seed(self, number: int, part: int) -> int:
        """A model seed for one part of one round; never used for privacy noise."""
        return int(np.random.SeedSequence([self._state.seed, number, part]).generate_state(1)[0])


def _known_head(accounts: Mapping[str, SiteAccount], site: str) -> Statement | None:
    """The newest head of a site's ledger that the run knows."""
    return accounts[site].ledger_head if site in accounts else None


def _head_of(site: str, reply: Reply) -> Statement:
    """What a site says of its ledger.

    Raises:
        ProtocolError: not of its form.
    """
    try:
        return Statement.from_dict(reply.facts["ledger_head"])
    except ProtocolError as fault:
        raise ProtocolError(f"site {site}: {fault}") from None


def _spending_of(site: str, reply: Reply) -> Spending:
    """What a site says of its spending.

    Raises:
        ProtocolError: not of its form, or without the event of the reply.
    """
    try:
        spending = Spending.from_dict(reply.facts.get("spending"))
    except ProtocolError as fault:
        raise ProtocolError(f"site {site}: {fault}") from None
    event = reply.facts.get("event")
    if event is not None and event not in [one.as_dict() for one in spending.events]:
        raise ProtocolError(f"site {site}: released what it does not say that it has spent")
    return spending


def _account_of(site: str, reply: Reply, head: Statement, spending: Spending, *, public: str) -> SiteAccount:
    """What a site says of itself at the roll call.

    Raises:
        ProtocolError: not of its form.
    """
    try:
        bound, key = float(reply.facts["bound"]), str(reply.facts["key"])
        account = SiteAccount(bound, key, head, spending, mask=mask_of(reply.facts))
    except (KeyError, TypeError, ValueError, OverflowError, ProtocolError):
        account = None
    if account is None or not 0 < account.bound < math.inf:
        raise ProtocolError(f"site {site}: does not say its budget and key")
    if account.key != public:  # the others would refuse to witness it
        raise ProtocolError(f"site {site}: has another key than the federation knows")
    return account


def _witnesses_of(site: str, facts: Mapping[str, Any], *, members: Collection[str]) -> frozenset[str]:
    """The sites that a site wants to attest its ledger; all where it does not say.

    Raises:
        ProtocolError: not names of members.
    """
    said = facts.get("witnesses", list(members))
    if not isinstance(said, list) or not all(isinstance(name, str) and name in members for name in said):
        raise ProtocolError(f"site {site}: asks for witnesses that are no members of the federation")
    return frozenset(said)


def _attestations_of(site: str, reply: Reply) -> list[Attestation]:
    """What a site attests.

    Raises:
        ProtocolError: not of its form.
    """
    found = reply.facts.get("attestations", [])
    if not isinstance(found, list):
        raise ProtocolError(f"site {site}: attestations: not of their form")
    try:
        return [Attestation.from_dict(one) for one in found]
    except ProtocolError as fault:
        raise ProtocolError(f"site {site}: {fault}") from None
