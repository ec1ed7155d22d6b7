"""Federated averaging of a vector by stock Flower: its own strategy, its own loop, its own node."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


class NotedFedAvg(FedAvg):
    """Flower's, which also writes down when each round was done, and over how many replies."""

    def __init__(self, out: Path) -> None:
        """All nodes train, none evaluates.

        Args:
            out: file that gets a line a round: `round`, `replies`, and `time` in seconds of the epoch.
        """
        super().__init__(fraction_evaluate=0.0)
        self._out = out

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As Flower does it."""
        had = list(replies)
        found = super().aggregate_train(server_round, had)
        well = sum(not reply.has_error() for reply in had)
        with self._out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": server_round, "replies": well, "time": time.time()}) + "\n")
        return found


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """So many rounds."""
    NotedFedAvg(Path(str(context.run_config["out"]))).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(1000, dtype=np.float32)]),
        num_rounds=int(context.run_config["rounds"]),
    )


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take a step, as long as a real one."""
    time.sleep(float(context.run_config["seconds"]))
    arrays = [array + 1 for array in message.content.array_records["arrays"].to_numpy_ndarrays()]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
