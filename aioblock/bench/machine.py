"""The machine that is measured on, and what a process has used of it."""

import asyncio
import os
import platform
import resource
import sys
from typing import Any, NamedTuple

import aioblock

__all__ = ["ProcessorTime", "describe_machine", "peak_memory", "processor_time"]


class ProcessorTime(NamedTuple):
    """Seconds, of all threads of the process."""

    user: float
    system: float


def processor_time() -> ProcessorTime:
    """What this process has used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return ProcessorTime(used.ru_utime, used.ru_stime)


def peak_memory() -> int:
    """The most memory in bytes that this process has held.

    Linux says it of the program alone; `ru_maxrss` is also what its parent held when it began.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_machine() -> dict[str, Any]:
    """What of a machine decides about times. To be called while a loop runs, whose kind is part of it."""
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "aioblock": aioblock.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
