"""Runs rounds on load processes while watching the servers' processor time. Knows nothing of a particular load."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cpu import cores, cpu_seconds, machine_seconds
from benchmarks.figures import Metric, percentile_ms
from benchmarks.load_process import LoadError, LoadProcess
from benchmarks.rounds import Round, RoundResult
from benchmarks.servers import Service

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Observation:
    """What rounds that ran together did, and what they cost the servers."""

    results: tuple[RoundResult, ...]
    """In the order of the rounds."""
    elapsed_s: float
    service_cpu_s: float
    redis_cpu_s: float
    load_cpu_s: float
    foreign_cpu_s: float
    """Of all other processes."""

    def cost(self, units: int) -> dict[Metric, float]:
        """Server CPU and throughput for so many tokens or deliveries."""
        return {
            Metric.CPU_US: (self.service_cpu_s + self.redis_cpu_s) / units * 1e6,
            **({Metric.REDIS_CPU_US: self.redis_cpu_s / units * 1e6} if self.redis_cpu_s else {}),
            Metric.LOAD_CPU_US: self.load_cpu_s / units * 1e6,
            Metric.FOREIGN_PERCENT: max(0.0, self.foreign_cpu_s) / self.elapsed_s / cores() * 100,
            Metric.PER_SECOND: units / self.elapsed_s,
        }


class Meter:
    """Counts what a service and its load processes use, from when it is made."""

    def __init__(self, service: Service, processes: Sequence[LoadProcess]) -> None:
        self._service = service
        self._processes = processes
        self._before = self._usage()

    def read(self, results: Sequence[RoundResult]) -> Observation:
        """What was used until now, by rounds with these results."""
        after = self._usage()
        elapsed_ns = max(result.ended_ns for result in results) - min(result.started_ns for result in results)
        service_s, redis_s, load_s, machine_s = (end - start for start, end in zip(self._before, after, strict=True))
        return Observation(
            tuple(results),
            elapsed_s=elapsed_ns / _NS_PER_S,
            service_cpu_s=service_s,
            redis_cpu_s=redis_s,
            load_cpu_s=load_s,
            foreign_cpu_s=machine_s - service_s - redis_s - load_s,
        )

    def _usage(self) -> tuple[float, float, float, float]:
        servers = self._service.cpu()
        load = sum(cpu_seconds(process.pid) for process in self._processes)
        return servers.service_s, servers.redis_s, load, machine_seconds()


async def observe(service: Service, *rounds: tuple[LoadProcess, Round]) -> Observation:
    """Runs rounds together, prepared and started in the order given: readers first. Raises LoadError."""
    for process, spec in rounds:
        await process.prepare(spec)
    processes = [process for process, _ in rounds]
    meter = Meter(service, processes)
    for process in processes:
        await process.start()
    return meter.read(await _all_results(processes))


async def _all_results(processes: Sequence[LoadProcess]) -> tuple[RoundResult, ...]:
    """Waits for all, or for the first that fails: the others' deadlines would only hide its reason."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(process.result()) for process in processes]
    except* LoadError as failed:
        raise LoadError(str(failed.exceptions[0])) from failed
    return tuple(task.result() for task in tasks)


def produce_latency(result: RoundResult) -> dict[Metric, float]:
    """Of the produce calls."""
    return {
        Metric.PRODUCE_P50_MS: percentile_ms(result.latencies_us, 50),
        Metric.PRODUCE_P99_MS: percentile_ms(result.latencies_us, 99),
    }


def delivery_latency(result: RoundResult) -> dict[Metric, float]:
    """From producer to reader, and how the tokens came packed."""
    return {
        Metric.DELIVERY_P50_MS: percentile_ms(result.latencies_us, 50),
        Metric.DELIVERY_P99_MS: percentile_ms(result.latencies_us, 99),
        Metric.PER_MESSAGE: result.tokens / result.messages,
    }
