"""What asyncio does not say of a socket."""

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress
from typing import Any


def address_of(name: Any) -> tuple[str, int] | None:
    """Return host and port as ASGI wants them, of an address as the system gives it."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None


def unread_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes the kernel holds for us."""
    try:
        packed = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, b"\0\0\0\0")
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", packed)[0])


def reset(transport: asyncio.Transport) -> None:
    """Close it so that the client sees a reset, not an end."""
    with suppress(OSError, AttributeError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
