"""ModelDisk: the simplest disk there is, to compare with: a bytearray and the rules of the block layer."""

__all__ = ["ModelDisk", "pattern"]


class ModelDisk:
    """What a disk holds. Every verb acts at once; out of range is the caller's mistake."""

    def __init__(self, length: int, content: bytes = b"") -> None:
        self.data = bytearray(content.ljust(length, b"\0"))
        assert len(self.data) == length

    def __repr__(self) -> str:
        return f"<ModelDisk {len(self.data)} bytes>"

    @property
    def length(self) -> int:
        return len(self.data)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Zeroes behind the end."""
        return bytes(self.data[offset : offset + nbytes]).ljust(nbytes, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= self.length
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, nbytes: int) -> None:
        self.write(offset, bytes(nbytes))

    def truncate(self, length: int) -> None:
        self.data = self.data[:length].ljust(length, b"\0")


def pattern(nbytes: int, seed: int) -> bytes:
    """Bytes without a zero among them, different at each offset nearby and for each seed."""
    return bytes((at * 7 + at // 251 + seed * 31) % 255 + 1 for at in range(nbytes))
