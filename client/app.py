"""The site as a Flower ClientApp: bytes in, bytes out. Nothing else of Flower is used, and no coordinator code runs."""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.site import Site
from common.wire.messages import RECORD


def make_client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """An app that hands every query to the site that `site_of` finds for the node."""
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        body = message.content[RECORD]["body"]
        reply = site_of(context).handle(body if isinstance(body, bytes) else b"")
        return Message(RecordDict({RECORD: ConfigRecord({"body": reply})}), reply_to=message)

    return app
