"""Messages between a trainer and the processes that step its lanes: one system call to send one, one to take it.

`multiprocessing`'s connections take two or more for each of these.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
from typing import Any

_HEAD = struct.Struct("<Q")  # bytes of the pickle that follows
_BLOCK = 1 << 16  # bytes that are asked for at once; most messages are shorter


class Channel:
    """One end of a pair that two processes hold; it takes objects that pickle can send.

    What comes is unpickled, which may run code: the other end has to be a process of one's own.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._known = b""  # what came of the next message
        self._poll = select.poll()  # made once: `select.select` takes no descriptor above 1023
        self._poll.register(descriptor, select.POLLIN)

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two ends of a new channel."""
        here, there = socket.socketpair()
        return cls(here.detach()), cls(there.detach())

    def fileno(self) -> int:
        """The descriptor, for a process that inherits it."""
        return self._descriptor

    def send(self, message: Any) -> None:
        """Sends an object.

        Raises:
          OSError: the other end is closed.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(_HEAD.pack(len(data)) + data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def wait(self, seconds: float) -> bool:
        """Whether something can be received, after at most so many seconds; also true where the other end is closed."""
        return bool(self._known) or bool(self._poll.poll(1000 * seconds))

    def receive(self) -> Any:
        """The next object; waits for it.

        Raises:
          EOFError: the other end is closed. OSError: it ended with something unread.
        """
        self._read(_HEAD.size)
        end = _HEAD.size + _HEAD.unpack_from(self._known)[0]
        self._read(end)
        message, self._known = self._known[_HEAD.size : end], self._known[end:]
        return pickle.loads(message)

    def close(self) -> None:
        """Closes this end, once."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, wanted: int) -> None:
        """Reads until so many bytes are known."""
        if len(self._known) >= wanted:
            return
        parts, number = [self._known], len(self._known)
        while number < wanted:
            part = os.read(self._descriptor, max(_BLOCK, wanted - number))
            if not part:
                raise EOFError
            parts.append(part)
            number += len(part)
        self._known = b"".join(parts)
