"""The bridge's HTTP gateway, read as a page does: one connection and one GET for each reader. It only reads."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.grpc_transport import MODEL_ID
from benchmarks.http_transport import HttpTransport, unchunk
from benchmarks.rounds import Reading
from benchmarks.tokens import DeliveryError
from benchmarks.transport import Reader


class SseTransport(HttpTransport):
    """Connections of Server-Sent Events."""

    async def produce(
        self, stream: str, first_sequence: int, tokens: Sequence[str], *, final: bool, awaited: bool = True
    ) -> None:
        """Is for gRPC, as engines do it."""
        raise NotImplementedError

    async def read(self, stream: str, reading: Reading, reader: Reader) -> None:
        """Reads a stream, and checks that every sequence is the next."""
        assert reading is Reading.CURSOR, "groups are not for browsers"
        connection = await self.connect()
        try:
            path = f"/v1/sessions/{stream}/models/{MODEL_ID}/events"
            connection.send(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
            await connection.head()
            reader.attached()
            body, expected, ended, done = bytearray(), 1, False, False
            while not ended:
                ended = unchunk(connection.buffer, body)
                complete, separator, rest = bytes(body).rpartition(b"\n\n")
                if separator:
                    body[:] = rest
                    texts: list[str] = []
                    for event in complete.split(b"\n\n"):
                        _, found, data = event.partition(b"\ndata: ")
                        fields: dict[str, Any] = json.loads(data) if found else {"type": ""}
                        if fields["type"] == "token":
                            for token in fields["tokens"]:
                                if token["sequence"] != expected:
                                    raise DeliveryError(f"stream {stream}: {token}, expected {expected}")
                                expected += 1
                                texts.append(token["content"])
                        done = done or fields["type"] == "complete"
                    if texts:
                        reader.take(texts)
                elif not ended:
                    await connection.arrival()
            if not done:
                raise DeliveryError(f"stream {stream}: the response ended before the stream")
        finally:
            connection.close()
