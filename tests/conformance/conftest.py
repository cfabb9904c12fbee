"""The options of the suite, and what cases get: callers of one bridge or two, over each transport in turn."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from llmbridge.v1.stream_pb2 import StreamRef
from tests.conformance.caller import Caller, new_stream
from tests.conformance.target import HASTY, NERVOUS, OWN_COMMAND, USUAL, Instance, Starter
from tests.conformance.transports import TRANSPORTS
from tests.support.redis_process import RedisProcess

LONGEST_WAIT_MS = 5_000
"""A target whose limits are longer than this can't be waited for."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "conformance: which bridge the promises of docs/protocol.md are checked on")
    group.addoption("--target", metavar="HOST:PORT", help="a bridge that runs already; default: the suite starts two")
    group.addoption("--second-target", metavar="HOST:PORT", help="another instance of the same bridge as --target")
    group.addoption("--target-http", metavar="URL", help="where --target serves HTTP: for the transports over it")
    group.addoption("--second-target-http", metavar="URL", help="where --second-target serves HTTP")
    group.addoption("--target-redis", metavar="URL", help="the Redis of --target: its sessions' keys are rolled back")
    group.addoption(
        "--target-setting",
        metavar="NAME=VALUE",
        action="append",
        help="a setting of --target by its documented name, for cases that wait; may be repeated",
    )
    group.addoption(
        "--target-command",
        metavar="COMMAND",
        help="starts a bridge that takes its settings from the environment, for the cases that hurt it (README.md says "
        "how); without --target all cases run against bridges started so",
    )
    group.addoption(
        "--target-command-http",
        action="store_true",
        help="what --target-command starts serves HTTP, and its second line of output says where",
    )


@dataclass(frozen=True, slots=True)
class Options:
    """The options as they were given. Plain `pytest` reads this conftest too late for them: then they have defaults."""

    target: str | None
    second: str | None
    redis: str | None
    settings: Mapping[str, str]
    command: str | None
    http: str | None
    second_http: str | None
    command_http: bool

    @classmethod
    def of(cls, config: pytest.Config) -> "Options":
        settings = config.getoption("--target-setting", None) or []
        target, command = config.getoption("--target", None), config.getoption("--target-command", None)
        return cls(
            target,
            config.getoption("--second-target", None),
            config.getoption("--target-redis", None),
            dict(setting.split("=", 1) for setting in settings),
            command or (None if target else OWN_COMMAND),
            config.getoption("--target-http", None),
            config.getoption("--second-target-http", None),
            command is None or bool(config.getoption("--target-command-http", None)),
        )

    @property
    def starting_command(self) -> str:
        if self.command is None:
            pytest.skip("the process of the target is not given: give --target-command")
        return self.command


@pytest.fixture(scope="session")
def options(pytestconfig: pytest.Config) -> Options:
    return Options.of(pytestconfig)


@pytest.fixture(scope="session")
def starter(options: Options) -> Iterator[Starter]:
    """Starts bridges of the implementation that is tested, and ends them with the run."""
    starter = Starter(options.starting_command, http=options.command_http)
    yield starter
    starter.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where bridges that share everything keep it."""

    redis_url: str
    prefix: str


@pytest.fixture(scope="session")
def place(shared_redis: RedisProcess) -> Place:
    return Place(shared_redis.url, f"c{secrets.token_hex(6)}")


@pytest.fixture(scope="session")
def own_pair(starter: Starter, place: Place) -> list[Instance]:
    """Two instances that no case may hurt."""
    return starter.bridges(2, place.redis_url, place.prefix, USUAL)


@pytest.fixture(scope="session")
def instances(options: Options, request: pytest.FixtureRequest) -> tuple[Instance, Instance | None]:
    """The bridge that is tested, and another instance of it."""
    if options.target is not None:
        one = Instance(options.target, options.settings, options.redis, http_url=options.http)
        if options.second is None:
            return one, None
        return one, Instance(options.second, options.settings, options.redis, http_url=options.second_http)
    first, second = request.getfixturevalue("own_pair")
    return first, second


@pytest.fixture(scope="session")
def hasty_instance(options: Options, request: pytest.FixtureRequest) -> Instance:
    """A bridge whose limits are so short that a case can wait for them."""
    if options.command is None:
        assert options.target is not None
        instance = Instance(options.target, options.settings, options.redis, http_url=options.http)
        waited_for = [name for name in HASTY if name.endswith(("_MS", "_INTERVAL"))]
        if missing := [name for name in waited_for if name not in instance.settings]:
            pytest.skip(f"not known of the target: {', '.join(missing)}: give them by --target-setting")
        if long := [name for name in waited_for if instance.setting(name) > LONGEST_WAIT_MS]:
            pytest.skip(f"too long to wait for: {', '.join(long)} of the target")
        return instance
    starter: Starter = request.getfixturevalue("starter")
    place: Place = request.getfixturevalue("place")
    return starter.bridge(place.redis_url, f"{place.prefix}-hasty", HASTY)


Connect = Callable[[Instance], Awaitable[Caller]]


@pytest.fixture(params=TRANSPORTS)
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Opens connections to instances over the transport whose turn it is, and closes them."""
    opened: list[Caller] = []

    async def connect(instance: Instance) -> Caller:
        opened.append(Caller.of(instance, TRANSPORTS[request.param]))
        return opened[-1]

    yield connect
    for caller in opened:
        await caller.transport.close()


@pytest.fixture
async def bridge(instances: tuple[Instance, Instance | None], connect: Connect) -> AsyncIterator[Caller]:
    """A caller of the bridge that is tested; what the case left there is removed."""
    caller = await connect(instances[0])
    yield caller
    await caller.clean_up()


@pytest.fixture
async def second(instances: tuple[Instance, Instance | None], connect: Connect) -> AsyncIterator[Caller]:
    """A caller of another instance of the same bridge."""
    if instances[1] is None:
        pytest.skip("there is one instance only: give --second-target")
    caller = await connect(instances[1])
    yield caller
    await caller.clean_up()


@pytest.fixture
async def hasty(hasty_instance: Instance, connect: Connect) -> AsyncIterator[Caller]:
    """A caller of a bridge that soon loses patience."""
    caller = await connect(hasty_instance)
    yield caller
    await caller.clean_up()


@dataclass(frozen=True)
class Doomed:
    """Bridges of the case's own, to be drained and killed, and one beside them that stays."""

    starter: Starter
    connect: Connect
    place: Place
    other: Caller

    async def bridge(self, **settings: str) -> Caller:
        """Start another instance, which the case may hurt."""
        started = self.starter.bridge(self.place.redis_url, self.place.prefix, {**USUAL, **settings})
        return await self.connect(started)


@pytest.fixture
async def doomed(starter: Starter, connect: Connect, place: Place, own_pair: list[Instance]) -> AsyncIterator[Doomed]:
    other = await connect(own_pair[0])
    yield Doomed(starter, connect, place, other)
    await other.clean_up()


@pytest.fixture(scope="session")
def nervous_instance(starter: Starter) -> tuple[Instance, RedisProcess]:
    redis = starter.redis()
    return starter.bridge(redis.url, f"c{secrets.token_hex(6)}", NERVOUS), redis


@dataclass(frozen=True)
class Nervous:
    """A bridge and its Redis, which cases may stop and kill; they leave it running."""

    bridge: Caller
    redis: RedisProcess


@pytest.fixture
async def nervous(nervous_instance: tuple[Instance, RedisProcess], connect: Connect) -> Nervous:
    instance, redis = nervous_instance
    if not redis.is_running:
        # The case before failed half-way.
        redis.start()
    bridge = await connect(instance)
    await bridge.produce_surely(new_stream(), "ready", first=1)
    return Nervous(bridge, redis)


@pytest.fixture
def stream() -> StreamRef:
    """A name that nobody else has."""
    return new_stream()


@pytest.fixture
def group() -> str:
    """A name for a group of the lifecycle feed, which is one for all streams."""
    return f"conformance-{secrets.token_hex(8)}"
