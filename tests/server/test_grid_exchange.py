"""Envelopes over a Flower grid: who is asked again, whose reply counts, and when it is over."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from common.wire import parcels
from common.wire.parcels import pack_body, unpack_body
from server import app
from server.app import BoundedGrid, GridExchange

SUPERLINK = 1
"""The node in whose name Flower answers for nodes that are gone."""


@dataclass
class Clock:
    """Time that passes only where somebody sleeps."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for part in ("task_id", "run_id", "node_id"):  # a Message asks who is speaking when it is made
        monkeypatch.setattr(TaskIdentity, f"_{part}", 1)
    monkeypatch.setattr(app, "time", SimpleNamespace(monotonic=found.monotonic, sleep=found.sleep))
    return found


@dataclass
class Reply:
    """Of a message, after so many seconds: a body, or None where the node failed."""

    body: bytes | None
    after: float = 0.0
    content: RecordDict | None = None


@dataclass
class FakeGrid:
    """A grid whose nodes answer as scripted: (node, number of the message to it) -> its replies."""

    clock: Clock
    script: Callable[[int, int], list[Reply]]
    nodes: list[int] = field(default_factory=lambda: [20, 3, 100])
    sent: list[tuple[float, int, bytes]] = field(default_factory=list)
    due: list[tuple[float, str, Reply]] = field(default_factory=list)
    pulled: list[list[str]] = field(default_factory=list)

    def get_node_ids(self) -> Iterable[int]:
        return iter(self.nodes)

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        for message in messages:
            node = message.metadata.dst_node_id
            number = sum(one == node for _, one, _ in self.sent)
            self.sent.append((self.clock.now, node, unpack_body(message.content)))
            identity = f"m{len(self.sent)}"
            self.due += [(self.clock.now + reply.after, identity, reply) for reply in self.script(node, number)]
            yield identity

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        wanted = list(message_ids)
        self.pulled.append(wanted)
        ready = [one for one in self.due if one[0] <= self.clock.now and one[1] in wanted]
        self.due = [one for one in self.due if one not in ready]
        return [reply_to(identity, reply) for _, identity, reply in ready]

    def times(self, node: int) -> list[float]:
        """When a node was asked, from the beginning."""
        return [round(when - 1000, 1) for when, one, _ in self.sent if one == node]


def reply_to(identity: str, reply: Reply) -> Any:
    """What Flower hands out; its source never says which node it is about."""
    content = reply.content if reply.content is not None else pack_body(reply.body or b"")
    return SimpleNamespace(
        metadata=SimpleNamespace(reply_to_message_id=identity, src_node_id=SUPERLINK),
        has_error=lambda: reply.body is None,
        content=content if reply.body is not None else None,
    )


def exchange(grid: FakeGrid, *, is_lasting: bool = True, timeout: float = 30.0, nodes: int = 3) -> GridExchange:
    return GridExchange(grid, nodes=nodes, patience=10.0, timeout=timeout, is_lasting=is_lasting)  # type: ignore[arg-type]


BODIES = {"3": b"for 3", "20": b"for 20"}


def test_each_node_gets_its_own_envelope_and_answers_come_by_address(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda node, _: [Reply(f"of {node}".encode(), after=node / 10)])
    assert exchange(grid).ask(BODIES) == {"3": b"of 3", "20": b"of 20"}
    assert [(node, body) for _, node, body in grid.sent] == [(3, b"for 3"), (20, b"for 20")]


def test_nobody_is_asked_where_there_is_nothing_to_ask(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda *_: [])
    assert exchange(grid).ask({}) == {}
    assert (grid.sent, clock.now) == ([], 1000.0)


def test_replies_count_for_the_message_that_they_answer_whatever_their_source(clock: Clock) -> None:
    # All come in the SuperLink's name, in another order than they were asked.
    grid = FakeGrid(clock, lambda node, _: [Reply(None if node == 3 else b"well", after=1.0 if node == 20 else 2.0)])
    assert exchange(grid, is_lasting=False).ask(BODIES) == {"20": b"well"}


def test_a_node_that_fails_is_asked_again_until_it_answers(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda node, number: [Reply(None if node == 3 and number < 3 else b"well")])
    assert exchange(grid).ask(BODIES) == {"3": b"well", "20": b"well"}
    assert len(grid.times(20)) == 1
    # Not at once: a pause lies between.
    pauses = [later - earlier for earlier, later in itertools.pairwise(grid.times(3))]
    assert [round(pause, 1) for pause in pauses] == [2.0, 2.0, 2.0]
    assert {sent for _, node, sent in grid.sent if node == 3} == {b"for 3"}


def test_a_node_that_fails_and_will_not_be_there_again_is_asked_once(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda node, _: [Reply(None if node == 3 else b"well")])
    assert exchange(grid, is_lasting=False).ask(BODIES) == {"20": b"well"}
    assert len(grid.sent) == 2
    assert clock.now < 1001


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"privshare": ArrayRecord()}), pack_body(b"")])
def test_a_reply_that_holds_no_body_of_ours_is_an_empty_answer_and_nobody_is_asked_again(
    clock: Clock, content: RecordDict
) -> None:
    grid = FakeGrid(clock, lambda *_: [Reply(b"x", content=content)])
    assert exchange(grid).ask({"3": b"for 3"}) == {"3": b""}
    assert grid.times(3) == [0.0]


def test_a_node_that_says_nothing_is_asked_again_after_a_while(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda node, number: [Reply(b"well")] * (number == 2))
    assert exchange(grid, timeout=1000).ask({"3": b"for 3"}) == {"3": b"well"}
    assert [round(when / 60) for when in grid.times(3)] == [0, 1, 3]  # twice as long each time


def test_a_node_that_failed_for_a_while_and_then_says_nothing_is_asked_again_as_soon_as_any(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda node, number: [Reply(None)] * (number < 5) + [Reply(b"well")] * (number == 6))
    assert exchange(grid, timeout=1000).ask({"3": b"for 3"}) == {"3": b"well"}
    assert round(grid.times(3)[6] - grid.times(3)[5]) == 60


def test_a_silent_node_that_will_not_be_there_again_is_waited_for_and_not_asked_again(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda *_: [Reply(b"late", after=900)])
    assert exchange(grid, timeout=1000, is_lasting=False).ask({"3": b"for 3"}) == {"3": b"late"}
    assert grid.times(3) == [0.0]


def test_the_answer_to_an_earlier_message_counts_and_what_comes_after_it_does_not(clock: Clock) -> None:
    replies = [[Reply(b"first", after=61)], [Reply(b"second", after=2)]]
    grid = FakeGrid(clock, lambda node, at: replies[at] if node == 3 else [Reply(b"of 20", after=70)] * (not at))
    assert exchange(grid, timeout=1000).ask(BODIES) == {"3": b"first", "20": b"of 20"}
    assert len(grid.times(3)) == 2
    assert grid.due == []  # it came, and was passed over


def test_an_earlier_message_s_failure_takes_no_answer_away_and_has_nobody_asked_again(clock: Clock) -> None:
    replies = [[Reply(None, after=64)], [Reply(b"second", after=1)]]
    grid = FakeGrid(clock, lambda node, at: replies[at] if node == 3 else [Reply(b"of 20", after=70)] * (not at))
    assert exchange(grid, timeout=1000).ask(BODIES) == {"3": b"second", "20": b"of 20"}
    assert grid.due == []
    assert len(grid.times(3)) == 2


def test_a_message_that_was_answered_is_not_pulled_again(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda node, _: [Reply(b"well", after=0 if node == 3 else 2)])
    exchange(grid).ask(BODIES)
    assert grid.pulled[0] == ["m1", "m2"]
    assert {tuple(pulled) for pulled in grid.pulled[1:]} == {("m2",)}


def test_what_belongs_to_an_earlier_question_is_never_taken_for_an_answer(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda _, number: [Reply(b"slow", after=40)] if number == 0 else [Reply(b"quick", after=20)])
    reached = exchange(grid, is_lasting=False)
    assert reached.ask({"3": b"one"}) == {}
    assert reached.ask({"3": b"two"}) == {"3": b"quick"}


@pytest.mark.parametrize("is_lasting", [True, False])
@pytest.mark.parametrize("script", [lambda *_: [], lambda node, _: [Reply(None if node == 3 else b"well")]])
def test_when_time_is_up_those_who_did_not_answer_have_no_entry(
    clock: Clock, is_lasting: bool, script: Callable[[int, int], list[Reply]]
) -> None:
    grid = FakeGrid(clock, script)
    found = exchange(grid, is_lasting=is_lasting).ask(BODIES)
    assert "3" not in found
    assert set(found) <= {"20"}
    assert clock.now <= 1000 + 30 + 0.3


def test_sites_are_those_that_are_connected_in_the_order_of_their_numbers(clock: Clock) -> None:
    assert exchange(FakeGrid(clock, lambda *_: [])).sites() == ["3", "20", "100"]
    assert clock.now == 1000


def test_sites_are_waited_for_and_those_that_came_in_time_are_there(clock: Clock) -> None:
    grid = FakeGrid(clock, lambda *_: [], nodes=[7])
    assert exchange(grid).sites() == ["7"]
    assert 1010 <= clock.now < 1011
    late = FakeGrid(clock, lambda *_: [])
    late.get_node_ids = lambda: iter([7] if clock.now < 1014 else [7, 5, 6])  # type: ignore[method-assign]
    assert exchange(late).sites() == ["5", "6", "7"]
    assert clock.now < 1015


# --- replies of any size

MIB = 1024 * 1024


@dataclass
class Runtime:
    """What a SuperLink says to a program of a run.

    heads: what it says of each reply. parts: by identity; empty where one has not come. nodes: that are connected.
    """

    nodes: list[int] = field(default_factory=lambda: [7])
    heads: list[Any] = field(default_factory=list)
    trees: list[Any] = field(default_factory=list)
    parts: dict[str, bytes] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)
    pulled: int = 0
    asked: list[str] = field(default_factory=list)
    announced: set[str] = field(default_factory=set)

    def reply(self, asked: str, content: RecordDict | Error, *, says: str | None = None) -> None:
        """Comes of node 7 to a message; `says` is what stands in its own parts."""
        body: Any = {"error" if isinstance(content, Error) else "content": content}
        message = make_message(head_of(says or asked), **body)
        self.heads.append(message_to_proto(remove_content_from_message(make_message(head_of(asked), **body))))
        self.trees.append(get_object_tree(message))
        self.parts |= {name: one.deflate() for name, one in get_all_nested_objects(message).items()}

    def PullMessages(self, asked: Any) -> PullAppMessagesResponse:  # noqa: N802
        assert list(asked.message_ids)
        assert not self.announced & set(asked.message_ids)  # it would say that it knows no such message
        self.announced |= {head.metadata.reply_to_message_id for head in self.heads}
        heads, trees, self.heads, self.trees = self.heads, self.trees, [], []
        return PullAppMessagesResponse(messages_list=heads, message_object_trees=trees)

    def PullObject(self, asked: Any) -> PullObjectResponse:  # noqa: N802
        assert asked.run_id == 5
        self.asked.append(asked.object_id)
        part = self.parts.get(asked.object_id)
        self.pulled += len(part or b"")
        return PullObjectResponse(
            object_found=part is not None, object_available=bool(part), object_content=part or b""
        )

    def GetNodes(self, _: Any) -> GetNodesResponse:  # noqa: N802
        return GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in self.nodes])

    def ConfirmMessageReceived(self, asked: Any) -> None:  # noqa: N802
        self.confirmed.append(asked.message_object_id)


def head_of(asked: str) -> Metadata:
    return Metadata(5, "", 7, 1, asked, "", 0.0, 60.0, "query")


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


def reached(runtime: Runtime) -> GridExchange:
    """An exchange over a SuperLink's grid."""
    grid = HttpGrid(token="of the run")
    grid.set_run(Run.create_empty(5))
    grid._client = runtime  # type: ignore[assignment]
    return GridExchange(BoundedGrid(grid), nodes=1, patience=1, timeout=1, is_lasting=True)


def pull(runtime: Runtime, *waiting: str) -> Mapping[str, bytes | None]:
    """What an exchange makes of what a SuperLink says, once."""
    return reached(runtime)._pull(list(waiting))


@pytest.mark.parametrize("size", [1, 4 * MIB, 9 * MIB])
def test_replies_are_pulled_from_a_superlink_part_by_part_and_confirmed(runtime: Runtime, size: int) -> None:
    body = np.random.default_rng(0).bytes(size)
    runtime.reply("m1", pack_body(body))
    runtime.reply("m2", pack_body(b"other"))
    runtime.reply("m3", Error(code=3))
    heads = [tree.object_id for tree in runtime.trees]
    assert pull(runtime, "m1", "m2", "m3") == {"m1": body, "m2": b"other", "m3": None}
    assert runtime.confirmed == heads


def test_a_reply_without_end_is_given_up_at_the_limit_and_is_an_empty_answer(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "MAX_BODY", 8 * MIB)
    runtime.reply("m1", pack_body(np.random.default_rng(0).bytes(12 * MIB)))
    runtime.reply("m2", pack_body(b"other"))
    heads = [tree.object_id for tree in runtime.trees]
    tracemalloc.start()
    try:
        found = pull(runtime, "m1", "m2")
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == {"m1": b"", "m2": b"other"}
    assert runtime.pulled < 8 * MIB + 6 * MIB
    assert taken < 8 * MIB + 2 * 6 * MIB  # the part over it is there twice, in its answer and out of it
    assert runtime.confirmed == heads


def test_a_malformed_reply_is_an_empty_answer(runtime: Runtime) -> None:
    runtime.reply("m1", RecordDict({"privshare": ArrayRecord({"body": parcels.Array(np.zeros(3))})}))
    runtime.parts = {name: part.replace(b"[0]", b"[9]") for name, part in runtime.parts.items()}
    runtime.reply("m2", pack_body(b"other"))
    assert pull(runtime, "m1", "m2") == {"m1": b"", "m2": b"other"}


def test_a_reply_answers_what_the_superlink_says_and_not_what_it_says_itself(runtime: Runtime) -> None:
    runtime.reply("m1", pack_body(b"mine"), says="m2")
    assert pull(runtime, "m1", "m2") == {"m1": b"mine"}


def test_a_reply_whose_parts_never_came_is_a_failure_of_its_node(runtime: Runtime) -> None:
    runtime.reply("m1", pack_body(b"mine"))
    runtime.reply("m2", pack_body(b"other"))
    del runtime.parts[runtime.trees[0].object_id]
    assert pull(runtime, "m1", "m2") == {"m1": None, "m2": b"other"}


def hold_back(runtime: Runtime, reply: int, part: int = 0) -> Callable[[], None]:
    """A part of a reply is still on its way, until what is returned is called."""
    names = [one.object_id for one in iterate_object_tree(runtime.trees[reply])]
    name = names[part]
    content, runtime.parts[name] = runtime.parts[name], b""

    def arrive() -> None:
        runtime.parts[name] = content

    return arrive


@pytest.mark.parametrize("part", [0, 1, -1])
def test_nobody_waits_for_the_parts_of_another_s_reply(runtime: Runtime, part: int) -> None:
    runtime.reply("m1", pack_body(b"slow"))
    runtime.reply("m2", pack_body(b"other"))
    first = runtime.trees[0].object_id
    arrive = hold_back(runtime, 0, part)
    exchange = reached(runtime)
    assert exchange._pull(["m1", "m2"]) == {"m2": b"other"}
    assert exchange._pull(["m1"]) == {}
    assert first not in runtime.confirmed
    arrive()
    assert exchange._pull(["m1"]) == {"m1": b"slow"}
    assert first in runtime.confirmed


def test_what_is_there_of_a_reply_is_not_pulled_again_before_the_rest_has_come(runtime: Runtime) -> None:
    runtime.reply("m1", pack_body(np.random.default_rng(0).bytes(9 * MIB)))
    hold_back(runtime, 0, -1)
    exchange = reached(runtime)
    exchange._pull(["m1"])
    taken, runtime.asked = runtime.pulled, []
    for _ in range(10):
        assert exchange._pull(["m1"]) == {}
    assert runtime.pulled == taken
    assert len(set(runtime.asked)) == 1


def test_parts_that_come_one_after_the_other_are_pulled_twice_at_most(runtime: Runtime) -> None:
    runtime.reply("m1", pack_body(np.random.default_rng(0).bytes(40 * MIB)))
    parts, whole = dict(runtime.parts), sum(map(len, runtime.parts.values()))
    names = [part.object_id for part in iterate_object_tree(runtime.trees[0])]
    for name in names:
        runtime.parts[name] = b""
    exchange = reached(runtime)
    for name in names:
        assert exchange._pull(["m1"]) == {}
        runtime.parts[name] = parts[name]
    assert list(exchange._pull(["m1"])) == ["m1"]
    assert runtime.pulled <= 2 * whole


def test_a_reply_of_a_node_that_went_before_it_had_sent_it_all_is_a_failure(runtime: Runtime) -> None:
    runtime.reply("m1", pack_body(b"mine"))
    arrive = hold_back(runtime, 0)
    exchange = reached(runtime)
    assert exchange._pull(["m1"]) == {}
    runtime.nodes = [8]
    assert exchange._pull(["m1"]) == {"m1": None}
    arrive()
    runtime.reply("m2", pack_body(b"mine"))  # a later message's, the same
    assert exchange._pull(["m2"]) == {"m2": b"mine"}


def test_a_reply_that_a_node_sent_whole_before_it_went_counts(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.reply("m1", pack_body(b"mine"))
    arrive = hold_back(runtime, 0)
    monkeypatch.setattr(Runtime, "GetNodes", lambda *_: (arrive(), GetNodesResponse())[1])
    assert pull(runtime, "m1") == {"m1": b"mine"}


def test_what_nobody_waits_for_any_more_is_forgotten(runtime: Runtime) -> None:
    runtime.reply("m1", pack_body(b"mine"))
    arrive = hold_back(runtime, 0)
    exchange = reached(runtime)
    assert exchange._pull(["m1"]) == {}
    assert exchange._pull(["m2"]) == {}
    arrive()
    assert exchange._pull(["m2"]) == {}
