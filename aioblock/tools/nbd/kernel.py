"""`-d`: make the kernel give a device up."""

from ..program import ProgramError, error_text

__all__ = ["disconnect"]


def disconnect(device: str) -> int:
    """Make the kernel give up the connection of a device. Raises: ProgramError."""
    from aioblock import disconnect_device

    try:
        disconnect_device(device)
    except OSError as error:
        raise ProgramError(error_text(error)) from error
    print(f"{device} disconnected")
    return 0
