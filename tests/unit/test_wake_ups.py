"""Pub/Sub over one connection: what is said on it, what listeners are told, and when it is made anew."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hiredis import pack_command
from redis.exceptions import MovedError, NoPermissionError

from llmbridge.log import wakeups as module
from llmbridge.log.wakeups import SlotGone, WakeUps
from tests.support.redis_peer import PATIENCE_SECONDS, Caller, Peer, on_both_loops, redis_peer


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[bytes | None] = asyncio.Queue()

    def __call__(self, message: bytes | None) -> None:
        self.told.put_nowait(message)


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[WakeUps, Peer, "asyncio.Queue[Exception]"]]:
    """Wake-ups that run, their far end, and the troubles they tell of."""
    troubles: asyncio.Queue[Exception] = asyncio.Queue()
    async with asyncio.timeout(PATIENCE_SECONDS), redis_peer() as peer:
        wake_ups = WakeUps(peer.connector(), troubled=troubles.put_nowait)
        running = asyncio.create_task(wake_ups.run())
        try:
            yield wake_ups, peer, troubles
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def message(*parts: Any) -> bytes:
    """What Redis says in Pub/Sub; None is a channel count."""
    return b"*%d\r\n" % len(parts) + b"".join(
        b":1\r\n" if part is None else b"$%d\r\n%s\r\n" % (len(part), part) for part in parts
    )


async def heard(caller: Caller, *commands: tuple[bytes, ...]) -> None:
    """Take commands that come together."""
    packed = b"".join(pack_command(command) for command in commands)  # type: ignore[arg-type]
    assert await caller.hear(len(packed)) == packed


@on_both_loops
async def test_it_subscribes_confirms_and_tells() -> None:
    async with listening() as (wake_ups, peer, _):
        caller = await peer.caller()
        a, b = Listener(), Listener()
        first, second = wake_ups.subscribe("a", a), wake_ups.subscribe("b", b)
        await heard(caller, (b"SUBSCRIBE", b"a"), (b"SUBSCRIBE", b"b"))
        assert not first.confirmed.is_set()
        await caller.say(message(b"subscribe", b"a", None) + message(b"message", b"a", b"1"))
        await first.confirmed.wait()
        # What was published before did not come here.
        assert [await a.told.get(), await a.told.get()] == [None, b"1"]
        assert not second.confirmed.is_set()
        await caller.say(message(b"subscribe", b"b", None), message(b"message", b"nobody's", b"2"))
        await caller.say(message(b"message", b"b", b"\r\n"), message(b"message", b"b", b""))
        assert [await b.told.get() for _ in range(3)] == [None, b"\r\n", b""]
        wake_ups.unsubscribe(first)
        await heard(caller, (b"UNSUBSCRIBE", b"a"))
        await caller.say(message(b"message", b"a", b"late") + message(b"unsubscribe", b"a", None))
        assert a.told.empty()


@on_both_loops
async def test_only_the_last_word_on_a_channel_counts() -> None:
    async with listening() as (wake_ups, peer, troubles):
        wake_ups.subscribe("b", Listener())
        caller = await peer.caller()
        await heard(caller, (b"SUBSCRIBE", b"b"))
        wake_ups.unsubscribe(wake_ups.subscribe("a", Listener()))
        again = wake_ups.subscribe("a", Listener())
        await heard(caller, (b"SUBSCRIBE", b"a"), (b"UNSUBSCRIBE", b"a"), (b"SUBSCRIBE", b"a"))
        await caller.say(message(b"subscribe", b"a", None), message(b"unsubscribe", b"a", None))
        assert not again.confirmed.is_set()
        await caller.say(message(b"subscribe", b"a", None))
        await again.confirmed.wait()
        assert troubles.empty()


@on_both_loops
async def test_a_connection_that_breaks_is_made_anew_with_every_channel() -> None:
    async with listening() as (wake_ups, peer, troubles):
        for cut in (Caller.hang_up, Caller.reset):
            listener = Listener()
            channel = cut.__name__.encode()
            subscription = wake_ups.subscribe(channel.decode(), listener)
            caller = await peer.caller()
            await heard(caller, (b"SUBSCRIBE", channel))
            await caller.say(message(b"subscribe", channel, None))
            assert await listener.told.get() is None
            cut(caller)
            await troubles.get()
            while subscription.confirmed.is_set():
                await asyncio.sleep(0)
            # Dropped and wanted while there is no connection: it begins with what is wanted then.
            wake_ups.unsubscribe(wake_ups.subscribe("never mind", Listener()))
            caller = await peer.caller()
            await heard(caller, (b"SUBSCRIBE", channel))
            await caller.say(message(b"subscribe", channel, None))
            assert await listener.told.get() is None
            assert subscription.confirmed.is_set()
            wake_ups.unsubscribe(subscription)
            await heard(caller, (b"UNSUBSCRIBE", channel))
            caller.hang_up()
            await troubles.get()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"-MOVED 5 127.0.0.1:7000\r\n", MovedError),
        (b"-NOPERM not your channel\r\n", NoPermissionError),
        (message(b"subscribe", b"a", None) + message(b"unsubscribe", b"a", None), SlotGone),
    ],
)
async def test_what_a_refused_channel_is_told_as(said: bytes, error: type[Exception]) -> None:
    async with listening() as (wake_ups, peer, troubles):
        wake_ups.subscribe("a", Listener())
        caller = await peer.caller()
        await heard(caller, (b"SUBSCRIBE", b"a"))
        await caller.say(said)
        assert isinstance(await troubles.get(), error)
        await caller.hear_end()


async def test_a_subscription_that_is_not_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(module, "CONFIRM_SECONDS", 0.1)
    async with listening() as (wake_ups, peer, troubles):
        wake_ups.subscribe("a", Listener())
        caller = await peer.caller()
        await heard(caller, (b"SUBSCRIBE", b"a"))
        with pytest.raises(TimeoutError, match="confirmed"):
            raise await troubles.get()
        await caller.hear_end()


async def test_silence_is_asked_for_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(module, "PING_SECONDS", 0.3)
    async with listening() as (_, peer, troubles):
        caller = await peer.caller()
        # Told in two ways: with and without subscriptions.
        for pong in (b"+PONG\r\n", message(b"pong", b"")):
            await heard(caller, (b"PING",))
            await caller.say(pong)
        await heard(caller, (b"PING",))
        assert troubles.empty()
        with pytest.raises(TimeoutError, match="PING"):
            raise await troubles.get()
        await caller.hear_end()


async def test_a_listener_that_fails_is_not_hidden() -> None:
    def listener(_: bytes | None) -> None:
        raise KeyError("a bug")

    async with redis_peer() as peer:
        wake_ups = WakeUps(peer.connector())
        running = asyncio.create_task(wake_ups.run())
        wake_ups.subscribe("a", listener)
        caller = await peer.caller()
        await heard(caller, (b"SUBSCRIBE", b"a"))
        await caller.say(message(b"subscribe", b"a", None))
        with pytest.raises(KeyError, match="a bug"):
            await asyncio.wait_for(running, PATIENCE_SECONDS)
