"""A load process: `python -m benchmarks.loadgen`, started by the benchmark and told what to do by JSON lines.

It reads {"speech", "target", "channels"} and then, any number of times, a round; answers each with {"ready": true},
waits for the line "go", carries it out and writes {"result": …}, or {"error": …} and ends. It ends too when its input
ends.
"""

import asyncio
import gc
import json
import sys
from dataclasses import asdict
from typing import Any

import uvloop

from benchmarks.client_transport import ClientTransport
from benchmarks.grpc_transport import GrpcTransport
from benchmarks.http_transport import HttpTransport
from benchmarks.many_transport import ManyTransport
from benchmarks.nats_transport import NatsTransport
from benchmarks.roles import carry_out
from benchmarks.rounds import round_from_json
from benchmarks.servers import Speech
from benchmarks.sse_transport import SseTransport
from benchmarks.transport import Transport

LINE_LIMIT = 4 * 1024 * 1024


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _connect(spec: dict[str, Any]) -> Transport:
    target, channels = spec["target"], spec["channels"]
    host, _, port = target.rpartition(":")
    match Speech(spec["speech"]):
        case Speech.CALLS:
            return await GrpcTransport.connect(target, channels)
        case Speech.MANY:
            return await ManyTransport.connect(target, channels)
        case Speech.CLIENT:
            return await ClientTransport.connect(target)
        case Speech.SSE:
            return SseTransport(host, int(port))
        case Speech.NATS:
            return await NatsTransport.connect(target, channels)
        case Speech.HTTP:
            return HttpTransport(host, int(port))


async def _run() -> None:
    orders = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)

    async def gate() -> None:
        # A collection in the midst of a round would count as the server's latency; a round's garbage is bounded.
        gc.collect()
        gc.freeze()
        _say({"ready": True})
        if await orders.readline() != b"go\n":
            raise EOFError("the benchmark has gone")

    transport = await _connect(json.loads(await orders.readline()))
    gc.disable()
    try:
        while line := await orders.readline():
            result = await carry_out(round_from_json(json.loads(line)), transport, gate)
            _say({"result": asdict(result)})
    finally:
        await transport.close()


def _reason(error: BaseException) -> str:
    """The first cause, as of a group of tasks all but one fell with it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def main() -> int:
    """Runs until its input ends. Returns the exit code."""
    try:
        uvloop.run(_run())
    except Exception as error:
        _say({"error": _reason(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
