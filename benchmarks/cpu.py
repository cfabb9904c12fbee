"""Processor time and memory of server processes, their children included. Knows nothing of what they do."""

import platform
import time

import psutil


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Seconds of processor time, user and system, that a process and its living children have used.

    Raises NoSuchProcess.
    """
    return sum(_seconds(process) for process in _tree(pid))


def _seconds(process: psutil.Process) -> float:
    if platform.system() == "Linux":
        # What clock_getcpuclockid(3) gives: counts in ns. The times under /proc count in steps of 10 ms.
        try:
            return time.clock_gettime((~process.pid << 3) | 2)
        except OSError as error:
            raise psutil.NoSuchProcess(process.pid) from error
    times = process.cpu_times()
    return float(times.user + times.system)


def cores() -> int:
    """How many cores the machine has."""
    return psutil.cpu_count() or 1


def machine_seconds() -> float:
    """Seconds in which the machine's cores were busy since it started, or were taken from it by its host."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return float(busy)


def resident_kib(pid: int) -> float:
    """Resident memory of a process and its children, in KiB."""
    return sum(process.memory_info().rss for process in _tree(pid)) / 1024


def listening_ports(pid: int) -> list[int]:
    """TCP ports on which a process or one of its children listens."""
    ports: set[int] = set()
    for process in _tree(pid):
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                ports.add(connection.laddr.port)
    return sorted(ports)
