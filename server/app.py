"""The coordinator as a Flower ServerApp: an exchange over a Flower grid, and nothing else of Flower."""

from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from common.wire.messages import RECORD
from server.exchange import Exchange


class GridExchange:
    """Carries bodies over a Flower grid; an address is a node id."""

    def __init__(self, grid: Grid, *, timeout: float) -> None:
        """`timeout` bounds the wait for all replies to one set of requests, in seconds."""
        self._grid = grid
        self._timeout = timeout

    def sites(self) -> list[str]:
        """Node ids that are connected, in numeric order."""
        return [str(node) for node in sorted(self._grid.get_node_ids())]

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


def make_server_app(conduct: Callable[[Exchange], None], *, timeout: float = 3600.0) -> ServerApp:
    """An app that conducts one run over the grid that Flower gives it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        conduct(GridExchange(grid, timeout=timeout))

    return app
