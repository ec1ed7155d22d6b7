"""All sites of a federation on one machine, over the same ServerApp and ClientApp as anywhere.

Two engines carry the messages: `process`, a grid inside this process that starts at once, and `flower`, Flower's own
simulation on Ray. What runs on top of them is the same code.
"""

import functools
import logging
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

# Before Flower is imported: nothing is reported to anybody.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default warns at every start

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_client_app
from client.door import Door
from client.simulated_site import COORDINATOR, SiteFolder, identity_of
from client.site import Site, open_site
from common.privacy.noise import SeededNoise
from server.app import make_server_app
from server.exchange import Credentials, Exchange

_FIRST_NODE = 1000
_RUN_ID = 1
_OF_GPU = 0.1
"""What a site asks for of a processor of graphics: ten of them may share one."""


@dataclass(frozen=True)
class Engine:
    """How sites compute. `noise_seed` is for tests of the engine itself: it voids the guarantee, and events say so."""

    kind: str
    device: str
    threads: int
    noise_seed: int | None = None


def credentials_of(names: Collection[str], *, seed: int) -> Credentials:
    """Of the coordinator of simulated sites; its key follows from the seed like theirs."""
    return Credentials(identity_of(COORDINATOR, seed), {name: identity_of(name, seed).public for name in names})


def run_federation(
    sites: list[SiteFolder],
    conduct: Callable[[Exchange], None],
    engine: Engine,
    *,
    site: type[Site] = Site,
) -> None:
    """Run a coordinator's conduct over simulated sites.

    Args:
        sites: their folders.
        conduct: of the coordinator.
        engine: how sites compute.
        site: what a site does; another one than `Site` for what it is compared with.

    Raises:
        PrivShareError: whatever the conduct raised.
    """
    torch.set_num_threads(engine.threads)
    faults: list[Exception] = []

    def guarded(exchange: Exchange) -> None:
        # Flower logs what a ServerApp raises and goes on; the caller must see it.
        try:
            conduct(exchange)
        except Exception as fault:  # noqa: BLE001
            faults.append(fault)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server_app = make_server_app(guarded, nodes=len(sites))
    if engine.kind == "process":
        _run_in_process(server_app, sites, engine, site)
    else:
        _run_on_ray(server_app, sites, engine, site)
    if faults:
        raise faults[0]


def _open(folder: SiteFolder, engine: Engine, site: type[Site]) -> Door:
    torch.set_num_threads(engine.threads)
    noise = None if engine.noise_seed is None else SeededNoise.of_site(folder.name, engine.noise_seed)
    return Door(open_site(folder.settings, noise=noise, device=engine.device, site=site))


def _run_in_process(server_app: ServerApp, sites: list[SiteFolder], engine: Engine, site: type[Site]) -> None:
    opened = [_open(folder, engine, site) for folder in sites]
    app = make_client_app(lambda context: opened[int(context.node_config["partition-id"])])
    server_app(LocalGrid(app, len(sites)), Context(_RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), {}))


def _run_on_ray(server_app: ServerApp, sites: list[SiteFolder], engine: Engine, site: type[Site]) -> None:
    # Ray is an optional extra and takes seconds to import.
    from flwr.simulation import run_simulation  # noqa: PLC0415

    # An actor's fault reaches nobody but Flower's log: what keeps a site from starting is found here.
    for folder in sites:
        _open(folder, engine, site)

    run_simulation(
        server_app=server_app,
        client_app=make_client_app(functools.partial(_door_of_actor, sites, engine, site)),
        num_supernodes=len(sites),
        # Ray hides all processors of graphics from an actor that asks for no part of one.
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0 if engine.device == "cpu" else _OF_GPU}},
    )


def _door_of_actor(sites: list[SiteFolder], engine: Engine, site: type[Site], context: Context) -> Door:
    """The site of a node, opened anew for each message: an actor serves many, and the disk is what they share."""
    return _open(sites[int(context.node_config["partition-id"])], engine, site)


class LocalGrid(Grid):
    """Flower's grid without Flower's processes: a message is a call. Node ids and the order of replies are fixed."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        """Serve `nodes` nodes with one app; a node's `partition-id` is its position."""
        self._app = app
        self._contexts = {
            _FIRST_NODE + position: Context(
                _RUN_ID, _FIRST_NODE + position, {"partition-id": position, "num-partitions": nodes}, RecordDict(), {}
            )
            for position in range(nodes)
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0
        # A Message asks who is speaking when it is made.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(_RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """All nodes, in order."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver each message, and keep the reply until it is pulled."""
        identities = []
        for message in messages:
            self._sent += 1
            identity = f"{self._sent:012d}"
            message.metadata.__dict__["_message_id"] = identity
            self._replies[identity] = self._app(message=message, context=self._contexts[message.metadata.dst_node_id])
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to messages, each once."""
        return [self._replies.pop(identity) for identity in message_ids if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and return their replies, in the messages' order."""
        del timeout
        return self.pull_messages(self.push_messages(messages))
