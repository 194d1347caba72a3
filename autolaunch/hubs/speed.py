"""How fast something comes and when it will be here, from how much was here when; and how that is said."""

from __future__ import annotations

from collections import deque

from selector.values import Value

#: The rate is that of so long.
WINDOW_SECONDS = 15.0
#: Before so long has passed a rate is a guess.
LEAST_SECONDS = 1.0


class Transfer(Value, frozen=True, kw_only=True):
    """How far a download is. ``left_seconds`` at the rate of late; ``None`` where there is no rate yet."""

    done_bytes: int
    total_bytes: int
    bytes_per_second: float | None = None
    left_seconds: float | None = None


class Speed:
    """Of one transfer. Clocks are passed in (monotonic seconds)."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, done_bytes: int, total_bytes: int, moved_bytes: int | None = None) -> Transfer:
        """Where it is now. ``moved_bytes`` is what has come of it by now, where some was here from the beginning."""
        moved_bytes = done_bytes if moved_bytes is None else moved_bytes
        self._seen.append((now, moved_bytes))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        since, before_bytes = self._seen[0]
        rate = left = None
        if now - since >= LEAST_SECONDS and moved_bytes >= before_bytes:
            rate = (moved_bytes - before_bytes) / (now - since)
            left = max(0, total_bytes - done_bytes) / rate if rate > 0 else None
        return Transfer(done_bytes=done_bytes, total_bytes=total_bytes, bytes_per_second=rate, left_seconds=left)


def amount(size_bytes: float) -> str:
    """``361.2 GB``, ``12.5 MB``: decimal, as hubs have it."""
    for unit, per in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= per:
            return f"{size_bytes / per:.1f} {unit}"
    return f"{size_bytes / 1e3:.0f} kB"


def left(seconds: float) -> str:
    """``1 h 20 min``, ``3 min``, ``40 s``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def told(transfer: Transfer) -> str:
    """``120.1 of 361.2 GB, 812.0 MB/s, 5 min left``."""
    done, total = amount(transfer.done_bytes), amount(transfer.total_bytes)
    number, _, unit = done.partition(" ")
    parts = [f"{number} of {total}" if total.endswith(f" {unit}") else f"{done} of {total}"]
    if transfer.bytes_per_second is not None:
        parts.append(f"{amount(transfer.bytes_per_second)}/s" if transfer.bytes_per_second >= 1 else "nothing comes")
    if transfer.left_seconds is not None and transfer.done_bytes < transfer.total_bytes:
        parts.append(f"{left(transfer.left_seconds)} left")
    return ", ".join(parts)
