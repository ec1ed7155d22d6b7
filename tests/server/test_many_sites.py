"""Runs over more sites than one would ask to witness its ledger."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from client.simulated_site import identity_of, make_site_folder
from client.site import Site
from common.errors import ProtocolError
from common.privacy.witness import MOST_WITNESSES, Statement, choose_witnesses
from common.study import load_study
from common.wire.messages import Reply, Request
from server.rounds import Coordinator, Trained
from simulations.federation import Engine, credentials_of, run_federation

SITES = [f"site_{at:02}" for at in range(MOST_WITNESSES + 4)]
STUDY = """\
schema: privshare.study/1
name: many
unit: {name: person, key: person}
label: {column: ill, positive: "yes"}
columns:
  colour: {type: categorical, categories: [red, green]}
  ill: {type: categorical, categories: ["no", "yes"]}
privacy: {epsilon: 30, delta: 1.0e-5, holdout: 0}
noise: {rounds: 1, schedule: fixed}
rounds: {count: 1, trainers: 1, local_steps: 0, refine_steps: 1}
model: {latent: 2, width: 8, blocks: 1, batch: 8}
"""


class Federation:
    """Twenty sites that know each other, and what they were asked and said."""

    def __init__(self, folder: Path, site: type[Site] = Site) -> None:
        path = folder / "study.yaml"
        path.write_text(STUDY, encoding="utf-8")
        study = load_study(path)
        folders = [
            make_site_folder(
                name,
                path,
                study,
                {"table": f"person,colour,ill\n{name}0,red,no\n{name}1,green,yes\n"},
                private=folder / "private",
                kept=folder / "run",
                seed=0,
                peers=set(SITES) - {name},
            )
            for name in SITES
        ]
        coordinator = Coordinator(
            study,
            folder=folder / "run",
            run="many",
            seed=0,
            credentials=credentials_of(SITES, seed=0),
            device=torch.device("cpu"),
            on_step=lambda _: None,
        )
        ended: list[Trained] = []
        engine = Engine("process", "cpu", 1)
        run_federation(folders, lambda exchange: ended.append(coordinator.run(exchange)), engine, site=site)
        self.state = ended[0].state


def asked(name: str) -> set[str]:
    keys = {peer: identity_of(peer, 0).public for peer in SITES if peer != name}
    return set(choose_witnesses(keys, identity_of(name, 0)))


def test_each_ledger_is_attested_by_the_peers_that_its_site_chose_and_they_hear_of_no_other(tmp_path: Path) -> None:
    heard: dict[str, set[str]] = defaultdict(set)

    class Listening(Site):
        """Keeps whose ledgers it was told of."""

        def handle(self, body: bytes) -> bytes:
            request = Request.decode(body)
            heads = [Statement.from_dict(one) for one in request.options.get("heads", [])]
            heard[self.name] |= {one.site for one in heads} | set(request.options.get("nonces", {}))
            return super().handle(body)

    state = Federation(tmp_path, Listening).state
    assert sorted(state.accounts) == SITES
    for name, account in state.accounts.items():
        assert {one.witness for one in account.attestations} == asked(name)
        assert all(one.sequence == account.ledger_head.sequence for one in account.attestations)
        assert heard[name] == {name} | {other for other in SITES if name in asked(other)}
    assert {len(release.events) for release in state.releases.values()} == {len(SITES)}


@pytest.mark.parametrize("witnesses", [["nobody"], None])
def test_a_site_that_asks_for_witnesses_that_are_no_members_ends_the_roll_call(
    tmp_path: Path, witnesses: object
) -> None:
    class Odd(Site):
        """Asks for what is no site."""

        def handle(self, body: bytes) -> bytes:
            reply = Reply.decode(super().handle(body))
            if self.name != SITES[3]:
                return reply.encode()
            return Reply(reply.site, {**reply.facts, "witnesses": witnesses}, reply.arrays, reply.refused).encode()

    with pytest.raises(ProtocolError, match=f"{SITES[3]}: asks for witnesses that are no members"):
        Federation(tmp_path, Odd)
