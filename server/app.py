"""The coordinator as a Flower ServerApp: an exchange over a Flower grid, and nothing else of Flower."""

import time
from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from common.wire.messages import RECORD
from server.exchange import Exchange

_POLL = 0.2


class GridExchange:
    """Carries bodies over a Flower grid; an address is a node id."""

    def __init__(self, grid: Grid, *, nodes: int, patience: float, timeout: float) -> None:
        """Wait for nodes, then carry.

        Args:
            grid: of Flower.
            nodes: how many must be connected.
            patience: how long to wait for them, in seconds.
            timeout: how long to wait for all replies to one set of requests, in seconds.
        """
        self._grid = grid
        self._nodes = nodes
        self._patience = patience
        self._timeout = timeout

    def sites(self) -> list[str]:
        """Node ids that are connected, in numeric order; those that came in time when some did not."""
        deadline = time.monotonic() + self._patience
        while len(found := list(self._grid.get_node_ids())) < self._nodes and time.monotonic() < deadline:
            time.sleep(_POLL)
        return [str(node) for node in sorted(found)]

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        """Send and wait; a node that failed or is late has no entry."""
        messages = [
            Message(
                RecordDict({RECORD: ConfigRecord({"body": body})}),
                dst_node_id=int(address),
                message_type=MessageType.QUERY,
            )
            for address, body in bodies.items()
        ]
        answers = {}
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout):
            if reply.has_error():
                continue
            body = reply.content[RECORD]["body"]
            if isinstance(body, bytes):
                answers[str(reply.metadata.src_node_id)] = body
        return answers


def make_server_app(
    conduct: Callable[[Exchange], None], *, nodes: int, patience: float = 120.0, timeout: float = 3600.0
) -> ServerApp:
    """An app that conducts one run over the grid that Flower gives it; the numbers are those of `GridExchange`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        conduct(GridExchange(grid, nodes=nodes, patience=patience, timeout=timeout))

    return app
