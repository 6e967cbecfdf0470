"""Packages that only some uses need, and that an installation may lack."""

from aioblock.base.errors import NotSupported

__all__ = ["need_cryptography"]


def need_cryptography() -> None:
    """Raises: NotSupported where the package `cryptography` is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise NotSupported(
            "Encryption needs the package 'cryptography', which is not installed: pip install aioblock[crypto]"
        ) from None
