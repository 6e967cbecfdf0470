"""What a data command prints when it is done: how much it did, in what time, and the data itself."""

import time

from .numbers import show_bytes

__all__ = ["Stopwatch", "dump", "report"]


class Stopwatch:
    """Measures from its creation to `stop`, in seconds."""

    def __init__(self) -> None:
        self._begin = time.perf_counter_ns()
        self.seconds = 0.0

    def stop(self) -> None:
        """Set `seconds`; at least a nanosecond, so that rates exist."""
        self.seconds = max(time.perf_counter_ns() - self._begin, 1) / 1e9


def report(verb: str, offset: int, nbytes: int, seconds: float, *, machine: bool) -> None:
    """Print the two lines for people, or with `machine` the one of comma-separated fields."""
    if machine:
        print(f"{nbytes},1,{_clock(seconds)},{nbytes / seconds:.3f},{1 / seconds:.3f}")
        return
    # A minute and more is shown as on a clock.
    duration = f"{int(seconds):02}.{_hundredths(seconds):02} sec" if seconds < 60 else _clock(seconds)
    print(f"{verb} {nbytes}/{nbytes} bytes at offset {offset}")
    rate = show_bytes(nbytes / seconds)
    print(f"{show_bytes(nbytes)}, 1 ops; {duration} ({rate}/sec and {1 / seconds:.4f} ops/sec)")


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}.{_hundredths(seconds):02}"


def _hundredths(seconds: float) -> int:
    return int(seconds * 100) % 100


def dump(offset: int, data: bytearray) -> None:
    """Print bytes as lines of 16, in hexadecimal and as letters and digits."""
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        text = "".join(chr(byte) if byte < 128 and chr(byte).isalnum() else "." for byte in line)
        print(f"{offset + at:08x}:  {line.hex(' ')}  {text}")
