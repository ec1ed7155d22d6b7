"""What a site connects to and what it does not: servers with each fault of a certificate, on loopback, over TLS."""

import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import create_connection, socket
from types import SimpleNamespace

import httpx
import pytest

from client.link import BusyError, Link, Parcel, RunOverError, _once, check_flower
from client.policy import SiteSettings
from common.errors import ExitCode, UnreachableError
from server.provision import renew_server
from tests.members import Federation, make_members
from tests.network.coordinators import NODE, serving

ACTIVATE = "/v1/fleet/activate-node"


@contextmanager
def relay(port: int, *, flipped: int) -> Iterator[int]:
    """A network that flips one bit of what the server sends, so many bytes from its beginning."""
    listener = socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def carry(source: socket, sink: socket, at: int | None) -> None:
        seen = 0
        try:
            while chunk := bytearray(source.recv(4096)):
                if at is not None and seen <= at < seen + len(chunk):
                    chunk[at - seen] ^= 1
                seen += len(chunk)
                sink.sendall(chunk)
        except OSError:
            pass
        sink.close()

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = create_connection(("127.0.0.1", port))
            threading.Thread(target=carry, args=(near, far, None), daemon=True).start()
            threading.Thread(target=carry, args=(far, near, flipped), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """With two sites that joined now."""
    return make_members(tmp_path_factory.mktemp("federation"), now=datetime.now(UTC))


def settings_of(federation: Federation, port: int, *, host: str = "127.0.0.1") -> SiteSettings:
    return federation.settings("north").model_copy(update={"superlink": f"{host}:{port}"})


def refused(settings: SiteSettings) -> UnreachableError:
    """Why a site does not open a connection, in one line."""
    link = Link(settings, is_stopping=threading.Event())
    with pytest.raises(UnreachableError) as error:
        link.open()
    link.close()
    assert str(error.value).isprintable()
    return error.value


def test_a_site_connects_to_its_coordinator_and_asks_for_messages(federation: Federation) -> None:
    with serving(federation.home) as port:
        link = Link(settings_of(federation, port), is_stopping=threading.Event()).open()
        assert link.pull() is None
        link.close()


def test_an_answer_to_a_superlink_that_lost_its_database_is_not_sent(federation: Federation) -> None:
    # There this site had another number; sent again, it would be refused for ever.
    asked = SimpleNamespace(metadata=SimpleNamespace(dst_node_id=NODE + 1, run_id=1))
    with serving(federation.home) as port:
        link = Link(settings_of(federation, port), is_stopping=threading.Event()).open()
        with pytest.raises(RunOverError):
            link.push(Parcel(b"", asked), b"answer")  # type: ignore[arg-type]
        assert link.pull() is None
        link.close()


def test_a_server_of_another_federation_is_refused(federation: Federation, tmp_path: Path) -> None:
    other = make_members(tmp_path / "other", now=datetime.now(UTC))
    with serving(other.home, ca=federation.home / "ca.crt") as port:
        assert "unable to get local issuer certificate" in str(refused(settings_of(federation, port)))


@pytest.mark.parametrize("days", [-400, 400])
def test_a_server_certificate_that_is_not_in_force_is_refused(federation: Federation, days: int) -> None:
    now = datetime.now(UTC)
    kept = (federation.home / "server.crt").read_bytes()
    renew_server(federation.home, now=now + timedelta(days=days))
    try:
        with serving(federation.home) as port:
            reason = str(refused(settings_of(federation, port)))
    finally:
        (federation.home / "server.crt").write_bytes(kept)
    assert ("expired" if days < 0 else "not yet valid") in reason


def test_a_server_under_a_name_that_its_certificate_lacks_is_refused(federation: Federation) -> None:
    with serving(federation.home, host="127.0.0.2") as port:
        assert "127.0.0.2" in str(refused(settings_of(federation, port, host="127.0.0.2")))


def test_a_server_that_speaks_an_old_protocol_is_refused(federation: Federation) -> None:
    with serving(federation.home, version=ssl.TLSVersion.TLSv1_2) as port:
        assert "TLS" in str(refused(settings_of(federation, port)))


def test_a_site_that_shows_another_federation_s_certificate_is_not_let_in(
    federation: Federation, tmp_path: Path
) -> None:
    other = make_members(tmp_path / "other", now=datetime.now(UTC))
    with serving(federation.home) as port:
        stranger = settings_of(federation, port).model_copy(update={"state": other.settings("north").state})
        refused(stranger)


def test_a_network_that_flips_nothing_is_no_hindrance(federation: Federation) -> None:
    with serving(federation.home) as port, relay(port, flipped=10**9) as same:
        Link(settings_of(federation, same), is_stopping=threading.Event()).open().close()


@pytest.mark.parametrize("flipped", [3, 90, 700, 1500])
def test_a_bit_that_the_network_flips_ends_the_connection(federation: Federation, flipped: int) -> None:
    with serving(federation.home) as port, relay(port, flipped=flipped) as changed:
        refused(settings_of(federation, changed))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, ExitCode.NOT_ADMITTED),
        (401, ExitCode.NOT_ADMITTED),
        (409, ExitCode.NOT_ADMITTED),
        (500, ExitCode.UNREACHABLE),
        (503, ExitCode.UNREACHABLE),
    ],
)
def test_who_is_not_let_in_knows_it_from_a_server_that_is_busy(
    federation: Federation, status: int, code: ExitCode
) -> None:
    with serving(federation.home, statuses={ACTIVATE: status}) as port:
        error = refused(settings_of(federation, port))
    assert error.code == code
    assert str(status) in str(error)


def test_before_the_coordinator_starts_a_study_a_site_is_told_what_it_waits_for(federation: Federation) -> None:
    with serving(federation.home, statuses={ACTIVATE: 412}) as port:
        error = refused(settings_of(federation, port))
    assert error.code == ExitCode.UNREACHABLE  # and is not given up after three minutes
    assert "before the coordinator's `privshare start`" in str(error)


@pytest.mark.parametrize(
    ("status", "headers"),
    [(200, {"content-encoding": "gzip"}), (307, {"location": ACTIVATE})],
)
def test_an_answer_that_is_packed_or_leads_in_a_circle_is_none(
    federation: Federation, status: int, headers: dict[str, str]
) -> None:
    with serving(federation.home, statuses={ACTIVATE: status}, headers=headers) as port:
        error = refused(settings_of(federation, port))
    assert str(error) == "superlink: an answer that is none"
    assert error.code == ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("flood", "longest", "said"),
    [
        ((1024 * 1024, 0.0), 300.0, "superlink: an answer that is none"),
        ((1, 0.02), 0.5, "superlink: cannot be reached (ReadTimeout)"),
    ],
)
def test_an_answer_without_end_is_given_up(
    federation: Federation, flood: tuple[int, float], longest: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.link._LONGEST_ANSWER", longest)
    with serving(federation.home, flood=flood) as port:
        error = refused(settings_of(federation, port))
    assert str(error) == said
    assert error.code == ExitCode.UNREACHABLE


def test_nobody_at_the_address_is_said_in_one_line(federation: Federation) -> None:
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = refused(settings_of(federation, taken.getsockname()[1]))
    assert error.code == ExitCode.UNREACHABLE


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_a_certificate_that_is_gone_or_not_of_the_key_keeps_a_site_at_home(
    federation: Federation, tmp_path: Path, name: str
) -> None:
    settings = settings_of(federation, 1)
    state = tmp_path / "state"
    shutil.copytree(settings.state, state)
    (state / name).write_bytes((federation.settings("south").state / name).read_bytes())
    with pytest.raises(UnreachableError, match="not there, not certificates") as error:
        Link(settings.model_copy(update={"state": state}), is_stopping=threading.Event())
    assert error.value.code == ExitCode.NOT_ADMITTED


def test_a_release_of_flower_that_nobody_tried_is_refused() -> None:
    check_flower("1.41.0")
    check_flower("1.41.7")
    for other in ("1.40.0", "1.42.0", "2.0.0", "1.4", "1.410.0"):
        with pytest.raises(UnreachableError, match="not tested") as error:
            check_flower(other)
        assert error.value.code == ExitCode.FLOWER_UNTESTED


PULL = "/v1/fleet/pull-messages"


@pytest.mark.parametrize("status", [429, 503])
def test_a_call_that_nobody_heard_is_made_again_over_the_same_connection(federation: Federation, status: int) -> None:
    statuses = {PULL: status}
    with serving(federation.home, statuses=statuses) as port:
        connected = Link(settings_of(federation, port), is_stopping=Mended(statuses)).open()
        assert connected.pull() is None
        connected.close()


class Mended(threading.Event):
    """The first wait lets the server answer again."""

    def __init__(self, statuses: dict[str, int]) -> None:
        super().__init__()
        self._statuses = statuses

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        self._statuses.clear()
        return False


@pytest.mark.parametrize("status", [502, 504])
def test_a_pull_that_may_have_been_heard_is_not_made_again(federation: Federation, status: int) -> None:
    statuses = {PULL: status}
    with serving(federation.home, statuses=statuses) as port:
        connected = Link(settings_of(federation, port), is_stopping=Mended(statuses)).open()
        with pytest.raises(UnreachableError, match=str(status)):
            connected.pull()
        connected.close()


@pytest.mark.parametrize(
    ("error", "is_heard"),
    [
        (httpx.ConnectError("no"), False),
        (httpx.ConnectTimeout("no"), False),
        (httpx.PoolTimeout("no"), False),
        (httpx.ReadError("no"), True),
        (httpx.ReadTimeout("no"), True),
        (httpx.WriteError("no"), True),
        (httpx.RemoteProtocolError("no"), True),
        (ssl.SSLError("no"), True),
        (ConnectionResetError("no"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_call_may_have_been_heard_unless_nobody_was_reached(error: Exception, is_heard: bool) -> None:
    def fail(_: None) -> None:
        raise error

    with pytest.raises(BusyError) as fault:
        _once(fail, None)
    assert fault.value.is_heard == is_heard
