"""What the service's keeper is told: ready, what is being done, that the loop still turns.

The protocol of ``sd_notify(3)``: datagrams of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names. Nobody
may be listening, or nobody may be reading. Neither ever raises here, and neither holds the daemon up.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping

from autolaunch.given import without_secrets

#: A status is read in one line of ``systemctl status``.
STATUS_CHARACTERS = 200
#: All that the protocol hands over in the environment. What a daemon starts is not what is watched.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_LIFE = ("READY", "RELOADING", "STOPPING")


class Notifier:
    """Tells systemd, where there is one.

    Each method says whether the message was taken. What a full socket refused (that the daemon is ready, its last
    status) goes out with the next message, a ping of the watchdog for example: a start is not lost to a busy moment.

    Attributes:
        watchdog_seconds: so long without :meth:`watchdog`, and the daemon is killed; it is due at half of that.
            ``None``: nobody watches.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        watchdog_seconds: float | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._clock_ns = clock_ns
        self._address = _socket_address(address)
        self._owed: dict[str, str] = {}
        self._socket: socket.socket | None = None
        if self._address is not None:
            try:
                # Not inherited by what the daemon starts: PEP 446.
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            except OSError:  # no descriptors left; there is a daemon to run all the same
                return
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], *, pid: int | None = None) -> Notifier:
        """The notifier that ``environ`` asks for, whose variables are taken out of it: nothing inherits them.

        ``pid`` is this process (``WATCHDOG_PID`` may name another).
        """
        address, microseconds, watched = (environ.pop(name, None) for name in VARIABLES)
        return cls(
            address, watchdog_seconds=_watchdog_seconds(microseconds, watched, os.getpid() if pid is None else pid)
        )

    def ready(self, status: str) -> bool:
        """The daemon answers; or does so again, after :meth:`reloading`."""
        return self._tell(READY="1", STATUS=one_line(status))

    def status(self, text: str) -> bool:
        """What is being done, for ``systemctl status``."""
        return self._tell(STATUS=one_line(text))

    def reloading(self) -> bool:
        """The configuration is read again; :meth:`ready` ends it, whatever came of it."""
        return self._tell(RELOADING="1", MONOTONIC_USEC=str(self._clock_ns() // 1000))

    def stopping(self, status: str) -> bool:
        """The daemon is on its way out."""
        return self._tell(STOPPING="1", STATUS=one_line(status))

    def watchdog(self) -> bool:
        """The loop still turns. To be called by that loop, and by nothing that could go on without it."""
        return self._tell(WATCHDOG="1")

    def close(self) -> None:
        """Tells nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, **said: str) -> bool:
        if self._socket is None or self._address is None:
            return False
        if any(name in said for name in _LIFE):  # what it was before is over
            for name in (*_LIFE, "MONOTONIC_USEC"):
                self._owed.pop(name, None)
        said = self._owed | said
        message = "".join(f"{name}={value}\n" for name, value in said.items()).encode("utf-8", "replace")
        try:
            self._socket.sendto(message, self._address)
        except OSError:  # full, dead, absent or no socket at all
            said.pop("WATCHDOG", None)  # a late ping would speak for a loop that hung
            self._owed = said
            return False
        self._owed = {}
        return True


def one_line(text: str) -> str:
    """``text`` without line ends, control characters and our tokens, in at most ``STATUS_CHARACTERS``."""
    # Bounded twice: what is thrown away need not be walked through.
    text = without_secrets(text[: 4 * STATUS_CHARACTERS])
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= STATUS_CHARACTERS else line[: STATUS_CHARACTERS - 1] + "…"


def _socket_address(named: str | None) -> bytes | None:
    """What is sent to: a path, or an abstract name. Other families (``vsock:``) are for machines, not for services."""
    if not named or named[0] not in "/@" or "\0" in named:
        return None
    address = os.fsencode(named)
    return b"\0" + address[1:] if named[0] == "@" else address


def _watchdog_seconds(microseconds: str | None, watched_pid: str | None, pid: int) -> float | None:
    if watched_pid is not None and watched_pid != str(pid):
        return None
    if microseconds is None or not (microseconds.isascii() and microseconds.isdigit()) or len(microseconds) > 18:
        return None
    return int(microseconds) / 1e6 or None
