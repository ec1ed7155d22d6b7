"""The site as a Flower ClientApp, for simulations: bytes in, bytes out. No coordinator code runs."""

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.door import Door
from common.errors import PolicyError
from common.wire.parcels import pack_body, unpack_body


def make_client_app(door_of: Callable[[Context], Door]) -> ClientApp:
    """An app that hands every query to the door that `door_of` finds for the node."""
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        return Message(pack_body(door_of(context).answer(unpack_body(message.content))), reply_to=message)

    return app


def _nobody(context: Context) -> Door:
    del context
    raise PolicyError("a site is run by privshare-client, not by a node of Flower")


app = make_client_app(_nobody)
"""A bundle of Flower must name a ClientApp. No site runs it, and it knows no site."""
