"""What workers are made of, without processes: what they are told, how they are numbered, which port they share."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbridge.admin.connections import Page, one_page
from llmbridge.gateway.instance import Instance, Report
from llmbridge.hub.serials import Serials, id_of, serial_of, worker_of
from llmbridge.server.assignment import Assignment, Place, Said, State
from llmbridge.server.ports import reserved
from llmbridge.server.workers import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, pause_seconds
from llmbridge.settings import Settings

PLACE = Place(2, 3, "instance", "/directory")


def test_an_assignment_has_all_settings_with_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMBRIDGE_WORKERS", "3")
    monkeypatch.setenv("LLMBRIDGE_MAX_CHATS", "7")
    settings = Settings.load(
        host="::1", port=1, redis_url="redis://user:p%40ss@host/2", upstream_key="key\nü", workers=1, http_port=0
    )
    line = Assignment(PLACE, settings).encode()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    told = Assignment.decode(line)
    assert (told.place, told.settings) == (PLACE, settings)
    assert told.settings.redis_location == "redis://user:p%40ss@host/2"
    assert told.settings.workers == 1


@pytest.mark.parametrize("said", [*(Said(state) for state in State), Said(None, "why\nit is")])
def test_what_a_worker_says_is_a_line(said: Said) -> None:
    line = said.encode()
    assert line.count(b"\n") == 1
    assert Said.decode(line) == said


def test_workers_know_each_others_sockets() -> None:
    assert PLACE.socket == "unix:/directory/worker-2.sock"
    assert PLACE.siblings == {1: "unix:/directory/worker-1.sock", 3: "unix:/directory/worker-3.sock"}


def test_pauses_grow_to_the_longest_and_differ() -> None:
    for failures, longest in ((1, FIRST_PAUSE_SECONDS), (2, 2 * FIRST_PAUSE_SECONDS), (50_000, LONGEST_PAUSE_SECONDS)):
        pauses = [pause_seconds(failures) for _ in range(100)]
        assert len(set(pauses)) > 50
        assert all(longest / 2 <= pause <= longest for pause in pauses)


def test_serials_grow_also_when_the_clock_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Serials(1), Serials(2)
    before = [first.next(), second.next()]
    monkeypatch.setattr("time.monotonic_ns", lambda: 5)
    found = [*before, first.next(), second.next(), first.next()]
    assert len(set(found)) == 5
    assert found[0] < found[2] < found[4]
    assert found[1] < found[3]
    assert [worker_of(id_of(one)) for one in found] == [1, 2, 1, 2, 1]
    assert [serial_of(id_of(one)) for one in found] == found


@pytest.mark.parametrize("text", ["", "1", "0" * 15, "0" * 17, "g" * 16, " " * 16, "00 00 00 00 00 1", "ü" * 16])
def test_what_is_no_id_has_no_worker(text: str) -> None:
    assert worker_of(text) is None


@dataclass(frozen=True)
class Named:
    id: str


@given(st.lists(st.lists(st.integers(0, 10_000), unique=True).map(sorted), min_size=1, max_size=4), st.integers(1, 9))
def test_pages_of_workers_make_the_pages_of_all(present: list[list[int]], page_size: int) -> None:
    """Each worker has these serials, apart from its own lowest bits."""
    workers = [[serial << 8 | worker for serial in mine] for worker, mine in enumerate(present)]
    found: list[str] = []
    after = -1
    while True:
        pages = []
        for mine in workers:
            left = [Named(id_of(serial)) for serial in mine if serial > after]
            pages.append(Page(tuple(left[:page_size]), "more" if len(left) > page_size else ""))
        page = one_page(pages, "s", page_size, "instance")
        assert len(page.connections) <= page_size
        found += [one.id for one in page.connections]
        if not page.next_page_token:
            break
        assert len(page.connections) == page_size
        last = serial_of(page.connections[-1].id)
        assert last is not None
        after = last
    assert found == sorted(id_of(serial) for mine in workers for serial in mine)


@contextmanager
def listening(port: int, *, shares: bool) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield listener


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_reserved_port_is_shared_by_those_who_ask_and_nobody_else(host: str) -> None:
    with reserved(host, 0) as port:
        with listening(port, shares=True), listening(port, shares=True):
            with pytest.raises(OSError, match="in use"), listening(port, shares=False):
                pass
            # Nothing comes to the reservation: everybody who connects is taken by one who listens.
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
        # Another supervisor, whose workers do not listen yet either.
        with pytest.raises(OSError, match=f"can't listen on {host}:{port}, is it taken"), reserved(host, port):
            pass
    with reserved(host, port) as again:
        assert again == port


def test_a_port_that_somebody_listens_on_is_not_reserved() -> None:
    for shares in (False, True):
        with reserved("127.0.0.1", 0) as port:
            pass
        with (
            listening(port, shares=shares),
            pytest.raises(OSError, match="is it taken"),
            reserved("127.0.0.1", port),
        ):
            pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_here_is_told(host: str) -> None:
    with pytest.raises(OSError, match=host), reserved(host, 0):
        pass


async def test_an_instance_adds_up_those_who_answer() -> None:
    async def others() -> list[Report | None]:
        return [Report(worker=3, tokens=5, calls=2, errors=1, seconds=0.5, chats=4), None, Report(worker=1, tokens=1)]

    instance = Instance(4, lambda: Report(worker=2, serving=False, connections=9), others)
    instance.counts.stored(10, 0.25)
    instance.measure(lambda: (6, 7))
    assert await instance.reports() == [
        Report(worker=1, tokens=1),
        Report(worker=2, serving=False, connections=9, tokens=10, calls=1, seconds=0.25, reads=6, chats=7),
        Report(worker=3, tokens=5, calls=2, errors=1, seconds=0.5, chats=4),
    ]
    total = await instance.total()
    assert (total.tokens, total.calls, total.errors, total.seconds) == (16, 3, 1, 0.75)


async def test_a_gateway_that_is_alone_knows_itself() -> None:
    instance = Instance()
    instance.counts.failed()
    assert await instance.reports() == [Report(calls=1, errors=1)]
