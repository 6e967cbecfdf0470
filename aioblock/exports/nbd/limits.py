"""What clients may cost. Sizes in bytes, times in seconds."""

from dataclasses import dataclass

__all__ = ["NbdLimits"]


@dataclass(frozen=True, slots=True)
class NbdLimits:
    """The bounds of a server. None: no bound."""

    connections: int | None = 128
    """At the same time; more wait until one ends, unaccepted."""
    requests: int = 128
    """Requests of one client that are being worked on; more are left in its socket."""
    client_bytes: int = 32 << 20
    """Data of one client's requests and replies. A single request may be as long as MAX_PAYLOAD nevertheless."""
    total_bytes: int = 256 << 20
    """The same of all clients together, beside up to 1 MiB of each."""
    handshake_timeout: float | None = 10.0
    """From the connection to the choice of an export, TLS included."""
    idle_timeout: float | None = None
    """Without any request, with none being worked on. Honest clients may be idle for days."""
    send_timeout: float | None = 60.0
    """Without the client taking a byte of what is ready for it."""
    stop_timeout: float | None = 4.0
    """When the server stops: for the requests that it has accepted."""
