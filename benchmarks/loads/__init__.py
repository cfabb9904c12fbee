"""The benchmark's loads, one file for each kind."""

from benchmarks.loads import engine_step, fan_out, groups, idle, many_streams, replay, unary
from benchmarks.loads.load import ALL_SERVICES, NAMES, Load, Target

ALL_LOADS: tuple[Load, ...] = (
    *unary.LOADS,
    *many_streams.LOADS,
    *engine_step.LOADS,
    *fan_out.LOADS,
    *replay.LOADS,
    *groups.LOADS,
    *idle.LOADS,
)
"""In the order of the report."""

__all__ = ["ALL_LOADS", "ALL_SERVICES", "NAMES", "Load", "Target"]
