"""What unit files of systemd 252 and later share: a word of theirs, and what engines are kept from in all of them.

What may be kept from them is decided by what they need. They compile at run time, so memory may be writable and
executable; they talk over shared memory, loopback and netlink; uv and the hub are reached over the network; the
processes that hold a device are named, so /proc stays visible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath

#: What systemd reads as it stands, in a command and in a setting.
_PLAIN = re.compile(r"[A-Za-z0-9/._+=:,@-]+")
_HOMES = (PurePosixPath("/home"), PurePosixPath("/root"), PurePosixPath("/run/user"))

#: Enforced by the kernel for any process, so a user's manager can set them too.
FOR_ANYBODY = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
# pidfd_getfd: how PyTorch hands device memory from one process to another.
SystemCallFilter=@system-service pidfd_getfd
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
"""

#: A view of the host of its own, which only the host's manager gives.
FOR_THE_HOST = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
PrivateTmp=yes
# What an engine that was killed leaves in /dev/shm goes with the service.
RemoveIPC=yes
PrivateIPC=yes
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
"""


def protect_home(read: Iterable[PurePath]) -> str:
    """The line that keeps homes from a service; they may be read where something of what it reads lies in one."""
    in_a_home = any(path.is_relative_to(home) for path in read for home in _HOMES)
    return f"ProtectHome={'read-only' if in_a_home else 'yes'}\n"


def unit_word(text: str, *, command: bool = False) -> str:
    """``text`` as one word of a unit file; ``$`` stands for itself in a ``command`` (systemd.syntax(7))."""
    doubled = text.replace("%", "%%")
    if command:
        doubled = doubled.replace("$", "$$")
    if _PLAIN.fullmatch(doubled):
        return doubled
    return f'"{"".join(map(_character, doubled))}"'


def _character(each: str) -> str:
    if each in '\\"':
        return f"\\{each}"
    return f"\\x{ord(each):02x}" if each < " " or each == "\x7f" else each
