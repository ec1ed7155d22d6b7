"""A federation of real processes on loopback: stock SuperLink, proxy, sites; what an attacker sends, and who dies when.

Each test runs for minutes, since Flower takes a minute to give a silent node up.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab

from client.health import SERVING, ask
from common.errors import ExitCode, OutputError, PrivShareError
from common.evaluation.report import Level
from common.privacy.ledger import read_ledger
from common.wire.envelopes import claimed_site
from common.wire.messages import Reply
from server.journal import read_journal
from server.launch import SuperLink
from server.provision import read_roster
from server.run_folder import ask as ask_for
from simulations.bench.faults import programs_of, send
from simulations.experiment import Run, Scenario, choose, divide, execute
from simulations.federation import Engine
from simulations.live import (
    LiveFederation,
    Where,
    free_ports,
    live_federation,
    namespaces,
    share_unit_secrets,
    traffic,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Of a library that Flower builds bundles with.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(
        shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None,
        reason="the proxy, nginx, is not installed",
    ),
]
NOISE_SEED = 11
STUDY = {
    "schema": "privshare.study/1",
    "name": "toy",
    "purpose": "to be disturbed",
    "unit": {"name": "patient", "key": "patient"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "colour": {"type": "categorical", "categories": ["red", "green", "blue"]},
        "age": {"type": "integer", "min": 0, "max": 99, "cells": 20},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 4, "delta": 1e-5, "holdout": 0.2},
    "rounds": {"count": 6, "local_steps": 2, "refine_steps": 2},
    "model": {"latent": 2, "width": 8, "blocks": 1, "batch": 8},
}


def make_run(folder: Path) -> Run:
    """Of two sites with some hundred patients."""
    random = np.random.default_rng(0)
    lines = ["patient,colour,age,ill"]
    for one in range(600):
        age = int(random.integers(100))
        ill = "yes" if 100 * random.random() < age else "no"
        lines.append(f"p{one},{random.choice(['red', 'green', 'blue'])},{age},{ill}")
    folder.mkdir(exist_ok=True)
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return choose(
        scenario=Scenario.BANK,
        study=folder / "study.yaml",
        data=[folder / "table.csv"],
        series=None,
        units=None,
        sites=2,
        test_noise_seed=NOISE_SEED,
        out=folder / "live",
    )


@contextmanager
def provisioned(folder: Path, where: Where) -> Iterator[tuple[Run, LiveFederation]]:
    """Parties that have joined, and are not started."""
    run = make_run(folder)
    divided = divide(run)
    with live_federation(run, divided, where, noise_seed=NOISE_SEED) as federation:
        federation.provision()
        share_unit_secrets(run, divided)
        yield run, federation


@contextmanager
def apart() -> Iterator[Where]:
    """Each party in a network namespace without a route to anywhere else, where this machine permits it."""
    with ExitStack() as stack:
        try:
            where = Where(*stack.enter_context(namespaces(["site_01", "site_02"], name="privshare-test")))
        except OutputError:
            yield Where()
            return
        for place in (where.coordinator, *where.sites.values()):
            routes = subprocess.run(place.command(["ip", "route"]), capture_output=True, text=True, check=True).stdout
            assert [line.split()[0] for line in routes.splitlines()] == ["10.77.0.0/24"]
        yield where


def kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_program(federation: LiveFederation) -> None:
    """The coordinator's, which Flower started; not that of another federation on this machine."""
    found = programs_of(federation, ("superexec",))
    assert found
    send(found, signal.SIGKILL)


def conducted(federation: LiveFederation, run: Run, at: dict[str, Callable[[], None]]) -> list[dict[str, Any]]:
    """The steps of a run; at the first of some, something is done."""
    steps: list[dict[str, Any]] = []
    left = dict(at)

    def on_step(step: dict[str, Any]) -> None:
        steps.append(step)
        if (act := left.pop(step["step"], None)) is not None:
            threading.Thread(target=act, daemon=True).start()

    federation.conduct(run=run.name, seed=run.options.seed, on_step=on_step)
    assert not left
    return steps


def in_one_process(run: Run, folder: Path) -> bytes:
    """The table that the same run makes without any transport."""
    again = Run(run.study, run.options, folder, is_new=True)
    engine = Engine("process", "cpu", 1, NOISE_SEED)
    execute(again, engine, torch.device("cpu"), lambda _: None, level=Level.BASIC, gated=False)
    return (folder / "synthetic.csv").read_bytes()


def charges(federation: LiveFederation, site: str) -> list[str]:
    """What a site's ledger was charged, in order."""
    book = read_ledger(federation.folder / "sites" / site / "ledger.jsonl")
    return [name for requests in book.charges.values() for name in requests]


def test_a_run_survives_the_death_of_a_site_of_the_coordinator_and_of_the_superlink(
    tmp_path: Path,
) -> None:
    with apart() as where, provisioned(tmp_path, where) as (run, federation):
        survives(run, federation)
        table = (federation.run_folder / "synthetic.csv").read_bytes()
    assert table == in_one_process(run, tmp_path / "again")


def survives(run: Run, federation: LiveFederation) -> None:
    """Kills each of them once, while the run goes on."""
    federation.start()

    def site() -> None:
        kill(federation.processes["site_01"])
        federation.start_site("site_01")

    def superlink() -> None:
        kill(federation.processes["superlink"])
        federation.start_superlink()

    steps = conducted(
        federation, run, {"one_way": site, "pairs-2": lambda: kill_program(federation), "pairs-3": superlink}
    )
    names = [step["step"] for step in steps]
    # What was done before is not done again: each release once, although the program was started more than once.
    assert names.count("started") >= 2
    for name in ("one_way", "pairs-1", "pairs-2", "pairs-3", "monitor-3"):
        assert names.count(name) == 1
    codes = federation.stop()
    assert {codes[name] for name in ("site_01", "site_02")} == {0}
    for name in ("site_01", "site_02"):
        assert len(charges(federation, name)) == len(set(charges(federation, name))) == 7
        federation.do_at(name, "ledger", "verify")
    assert set(traffic(run.folder)) == {"site_01", "site_02"}


EVIL_SERVER = """
import json, pathlib
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    found = []
    bodies = [b"\\x80\\x04N.", bytes(1000)]
    for kind in ("query", "train", "query.get"):
        for body in bodies:
            messages = [Message(RecordDict({"privshare": ConfigRecord({"body": body, "noise-multiplier": 0.0})}),
                                dst_node_id=node, message_type=kind) for node in grid.get_node_ids()]
            for reply in grid.send_and_receive(messages, timeout=60):
                error = reply.error.reason if reply.has_error() else ""
                body = b"" if reply.has_error() else reply.content["privshare"]["body"]
                found.append([error, body.hex()])
    pathlib.Path(context.run_config["out"]).write_text(json.dumps(found))
"""
EVIL_CLIENT = """
import pathlib
pathlib.Path({marker!r}).write_text("executed")
from flwr.clientapp import ClientApp
app = ClientApp()
"""
BUNDLE = """
[project]
name = "evil"
version = "9.9.9"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0,<1.42"]
[tool.flwr.app]
publisher = "privshare"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "evil_server:app"
clientapp = "client.site:app"
[tool.flwr.app.config]
out = "{out}"
epsilon = 1000000.0
noise-multiplier = 0.0
"""


def test_no_code_and_no_configuration_from_the_coordinator_is_obeyed_and_what_was_approved_is_paused_and_stopped(
    tmp_path: Path,
) -> None:
    with provisioned(tmp_path, Where()) as (run, federation):
        attacked(federation, tmp_path)
        # And what the sites approved still runs, as its operator steers it.
        paused_then_stopped(run, federation)
        conducted(federation, run, {})
        table = (federation.run_folder / "synthetic.csv").read_bytes()
    assert table == in_one_process(run, tmp_path / "again")


def paused_then_stopped(run: Run, federation: LiveFederation) -> None:
    """Types `pause`, `resume` and `stop` beside a run, which ends with nothing published."""
    folder, begun = federation.run_folder, threading.Event()
    with ThreadPoolExecutor(1) as pool:
        # The first word of a run comes before its program has asked a site for anything.
        started = pool.submit(federation.conduct, run=run.name, seed=run.options.seed, on_step=lambda _: begun.set())
        assert begun.wait(300)
        federation.do("privshare", "pause", folder)
        wait_while_paused(federation)
        federation.do("privshare", "resume", folder)
        wait_for(lambda: "resumed" in happened(folder))
        ask_for(folder, "pause")
        wait_while_paused(federation)
        federation.do("privshare", "stop", folder)
        with pytest.raises(PrivShareError, match="stopped as it was asked to; it goes on from here") as caught:
            started.result(timeout=300)
    assert caught.value.code == ExitCode.STOPPED
    assert state_of(federation) == "stopped"
    assert not any((folder / name).exists() for name in ("synthetic.csv", "certificate.json", "generator", "card.md"))
    events = happened(folder)
    assert events[events.index("paused") + 1] == "resumed"
    assert events[-2:] == ["paused", "stopped"]
    with pytest.raises(PrivShareError, match="its run is stopped; start it again"):
        federation.do("privshare", "resume", folder)


def wait_while_paused(federation: LiveFederation) -> None:
    """Until a run is paused and for some time after; nothing is asked of a site, so that it charges nothing."""
    wait_for(lambda: happened(federation.run_folder)[-1] == "paused")
    before = ledgers(federation)
    time.sleep(3)
    assert (ledgers(federation), state_of(federation)) == (before, "paused")


def happened(folder: Path) -> list[str]:
    """What the journal of a run says, in order."""
    return [event["event"] for event in read_journal(folder)]


def state_of(federation: LiveFederation) -> str:
    """As `privshare status` says it."""
    return str(json.loads(federation.do("privshare", "status", federation.run_folder, "--json"))["run"]["state"])


def ledgers(federation: LiveFederation) -> list[bytes]:
    """Of both sites, whole."""
    return [(federation.folder / "sites" / name / "ledger.jsonl").read_bytes() for name in ("site_01", "site_02")]


def attacked(federation: LiveFederation, tmp_path: Path) -> None:
    """Sends sites another bundle, another configuration and messages of many kinds."""
    health = dict(zip(("site_01", "site_02"), free_ports(2), strict=True))
    for name, port in health.items():
        with (federation.folder / "sites" / name / "site.yaml").open("a") as file:
            file.write(f'health: "127.0.0.1:{port}"\n')
    federation.start()
    superlink = SuperLink(federation.port, federation.home / "ca.crt")
    superlink.register(read_roster(federation.home))
    for port in health.values():
        wait_for(lambda port=port: ask(f"127.0.0.1:{port}")[""] == SERVING)
    marker, out = tmp_path / "marker", tmp_path / "found.json"
    client = EVIL_CLIENT.format(marker=str(marker)).encode()
    body, _ = build_fab_from_files(
        {
            "pyproject.toml": BUNDLE.format(out=out).encode(),
            "LICENSE": b"none",
            "evil_server.py": EVIL_SERVER.encode(),
            # In the place of what is installed at the sites, as Flower's own node would load it.
            "client/__init__.py": client,
            "client/site.py": client,
            "common/__init__.py": client,
        }
    )
    asked = StartRunRequest(
        fab=fab_to_proto(Fab(hashlib.sha256(body).hexdigest(), body, {})),
        override_config=user_config_to_proto({"noise-multiplier": 0.0001, "epsilon": 1e9}),
        federation="",
        app_spec="",
    )
    superlink._client.StartRun(asked)
    wait_for(out.exists, seconds=180)
    replies = json.loads(out.read_text())
    assert len(replies) == 2 * 3 * 2
    for error, answer in replies:
        assert error == ""
        refused(bytes.fromhex(answer))
    assert not marker.exists()
    for name in health:
        # A ledger is made when a site opens; nothing was charged.
        assert charges(federation, name) == []
        assert not list((federation.folder / "sites" / name / "state" / "replies").glob("*"))


def refused(envelope: bytes) -> None:
    """A signed answer that says no more than that what came is not trusted."""
    assert claimed_site(envelope) in ("site_01", "site_02")
    length = int.from_bytes(envelope[:4], "big")
    assert Reply.decode(envelope[4 + length + 64 :]).refused == ExitCode.UNTRUSTED.name


def wait_for(is_so: Callable[[], bool], *, seconds: float = 60) -> None:
    """Until it is so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if is_so():
                return
        except Exception as error:  # noqa: BLE001 (nobody may be there yet)
            del error
        time.sleep(0.5)
    raise AssertionError("it never was")
