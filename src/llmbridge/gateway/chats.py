"""The upstream's answers that are under way: started by requests, owned here, ended before the gateway is.

Knows nothing of JSON.
"""

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

import grpc

from llmbridge.client.errors import ClientError, GenerationOver
from llmbridge.client.values import FinishReason
from llmbridge.gateway.calls import ask
from llmbridge.gateway.counts import Counts
from llmbridge.gateway.link import Link
from llmbridge.gateway.options import Options
from llmbridge.gateway.problems import Problem, error_info
from llmbridge.gateway.upstream import Question, Upstream, UpstreamError
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest
from llmbridge.v1.stream_pb2 import StreamRef

__all__ = ["Chats"]

CLOSE_SECONDS = 2.0
"""How long storing a stream's end may take when its answer is broken off."""

logger = logging.getLogger(__name__)


class Chats:
    """The answers under way, as an async context manager: at its end they get their time to finish, then are cut."""

    def __init__(self, link: Link, options: Options, counts: Counts) -> None:
        self._link = link
        self._options = options
        self._counts = counts
        self._upstream: Upstream | None = None
        self._places = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        if self._options.upstream_url:
            self._upstream = Upstream(self._options.upstream_url, self._options.upstream_key)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tasks:
            logger.info("draining: %d answers of the upstream", len(self._tasks))
            await asyncio.wait(self._tasks, timeout=self._link.seconds_left(self._options.drain_timeout_ms / 1000))
        for task in self._tasks:
            task.cancel("the gateway is shutting down")
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._upstream is not None:
            await self._upstream.close()

    @property
    def under_way(self) -> int:
        """How many answers are under way."""
        return self._places

    async def models(self) -> list[dict[str, Any]]:
        """Give the upstream's models as it describes them; none where there is no upstream. Raises UpstreamError."""
        return await self._upstream.models() if self._upstream is not None else []

    async def start(self, stream: StreamRef, question: Question) -> StreamRef:
        """Create a stream (an empty response id becomes a random one) and have the upstream answer into it.

        Returns as soon as the stream exists. Raises Problem where there is no upstream, or no place; and ClientError.
        """
        if self._upstream is None:
            raise Problem(grpc.StatusCode.FAILED_PRECONDITION, "no model server is configured (LLMBRIDGE_UPSTREAM_URL)")
        if self._link.draining:
            raise Problem(
                grpc.StatusCode.UNAVAILABLE,
                "the gateway is shutting down",
                details=[error_info("DRAINING", {})],
                headers={"retry-after": "1"},
            )
        maximum = self._options.max_chats
        if self._places >= maximum:
            raise Problem(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{maximum} answers are under way already",
                details=[
                    error_info(
                        "LIMIT_EXCEEDED", {"limit": "max_chats", "maximum": str(maximum), "value": str(maximum + 1)}
                    )
                ],
                headers={"retry-after": "1"},
            )
        self._places += 1
        try:
            created = await ask(self._link, self._link.admin.CreateStream, CreateStreamRequest(stream=stream))
        except BaseException:
            self._places -= 1
            raise
        task = asyncio.create_task(self._answer(self._upstream, created.stream, question), name="chat")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return created.stream

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places -= 1

    async def _answer(self, upstream: Upstream, stream: StreamRef, question: Question) -> None:
        """Pipe an answer. Whatever fails, leaving the writer's block gives the stream its end."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            async with self._link.write(stream, close_timeout=CLOSE_SECONDS) as writer:
                completion = await upstream.pipe(question, writer)
        except UpstreamError as error:
            self._counts.failed()
            logger.warning("%s", error)
        except GenerationOver as error:
            logger.info("an answer of the upstream was stopped: %s", error)
        except ClientError as error:
            self._counts.failed()
            logger.warning("an answer of the upstream could not be stored: %s", error)
        except Exception:
            self._counts.failed()
            logger.exception("a defect while the upstream answered")
        else:
            if FinishReason.of(completion) is FinishReason.ERROR:
                self._counts.failed()
            else:
                self._counts.stored(writer.last_sequence - 1, clock() - begun)
