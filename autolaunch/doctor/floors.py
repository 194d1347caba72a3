"""What a host is held against: ``profiles/doctor.toml``."""

from __future__ import annotations

from typing import Literal

import profiles
from selector.catalog import read_profile
from selector.values import Value


class DriverFloor(Value, frozen=True, kw_only=True):
    """The oldest NVIDIA driver that runs what was built for a CUDA of this major version."""

    cuda: int
    version: str
    source: str


class SharedMemory(Value, frozen=True, kw_only=True):
    """Of /dev/shm, where several devices work together: below ``floor_bytes`` their start fails."""

    floor_bytes: int
    wanted_bytes: int
    source: str


class LimitFloor(Value, frozen=True, kw_only=True):
    """Of a ulimit: below ``floor`` a start fails, below ``wanted`` a loaded engine may."""

    floor: int
    wanted: int
    source: str


class Disk(Value, frozen=True, kw_only=True):
    """``read_*`` bound the test of it."""

    wanted_bytes_per_second: float
    read_bytes: int
    read_seconds: float
    source: str


class Margin(Value, frozen=True, kw_only=True):
    """Under strict accounting this share of the plan's host memory has to be left to commit."""

    overcommit_margin: float
    source: str


class Persistence(Value, frozen=True, kw_only=True):
    seconds_per_gpu: float
    source: str


class Clock(Value, frozen=True, kw_only=True):
    earliest_year: int
    source: str


class Apple(Value, frozen=True, kw_only=True):
    """``macos_bytes`` stay with macOS, whatever may be wired."""

    macos_bytes: int
    source: str


class Network(Value, frozen=True, kw_only=True):
    filesystems: tuple[str, ...]
    source: str


class Floors(Value, frozen=True, kw_only=True):
    """``profiles/doctor.toml``."""

    schema: Literal[1]
    drivers: tuple[DriverFloor, ...]
    shared_memory: SharedMemory
    limits: dict[str, LimitFloor]
    disk: Disk
    memory: Margin
    persistence: Persistence
    clock: Clock
    apple: Apple
    network: Network


def floors() -> Floors:
    """The shipped figures.

    Raises:
        ProfileError: the file is wrong.
    """
    return read_profile(profiles.DIRECTORY / "doctor.toml", Floors)
