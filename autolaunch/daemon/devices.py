"""Whether the GPUs are still there for work: the driver's errors (Xid) as they come, and a question now and then.

Only NVIDIA's driver tells. While it is watched NVML is open, and a GPU that somebody has open cannot be reset: whoever
wants to reset one has to end the daemon first, as the hints say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from profiles import DIRECTORY
from selector.catalog import read_profile
from selector.facts import XidFacts, XidFile
from selector.hardware import Finding
from selector.probe.nvidia_health import Ailment, Gpu, ailment_of, gpus
from selector.probe.nvml import LIBRARY_NAME, Nvml, NvmlFailure, Xid, is_installed, key
from selector.values import Value

#: How often each device is asked, how long one wait for an error lasts, and when a driver that failed is tried again.
PERIOD_SECONDS, WAIT_SECONDS, RETRY_SECONDS = 10.0, 1.0, 60.0
#: The same fault of a device is told again after so long, and so many different ones in that time.
QUIET_SECONDS, FAULTS = 3600.0, 16
#: After so many errors without a pause there is one: a device that reports without end costs no processor.
BURST, PAUSE_SECONDS = 100, 0.25
#: The longest that :meth:`DeviceWatch.close` waits for a driver that hangs.
CLOSE_SECONDS = 2.5

_LOST = "lost"
_RESET = (
    "it can be used again after a reboot, or after a reset while nothing has it open, autolaunch neither "
    "(nvidia-smi --gpu-reset)"
)


class DeviceTrouble(Value, frozen=True, kw_only=True):
    """Something that went wrong with a GPU, or with the driver as a whole (``index`` and ``uuid`` ``None``).

    ``lost``: the GPU cannot be used until it is reset or the host is rebooted. ``xid`` is the number of the driver's
    error, if one told it. ``slices`` are the UUIDs of a GPU's MIG slices: they share its fate. ``message`` is one
    sentence without a full stop.
    """

    uuid: str | None = None
    index: int | None = None
    name: str
    xid: int | None = None
    lost: bool
    message: str
    hint: str | None = None
    slices: tuple[str, ...] = ()


class Told:
    """Which faults were told of which device: the same one not twice in a while, and not too many."""

    def __init__(self) -> None:
        self._told: dict[int, dict[str, float]] = {}

    def is_news(self, device: int, fault: str, now: float) -> bool:
        """Whether the fault is to be told; when it is, it counts as told. That a device is lost always fits in."""
        faults = self._told.setdefault(device, {})
        for old in [each for each, when in faults.items() if now - when >= QUIET_SECONDS]:
            del faults[old]
        if fault in faults or (len(faults) >= FAULTS and fault != _LOST):
            return False
        faults[fault] = now
        return True

    def forget(self, device: int) -> None:
        """Everything of this device is to be told anew."""
        self._told.pop(device, None)


def known_xids() -> dict[int, XidFacts]:
    """What is known of the driver's errors, by number.

    Raises:
        ProfileError: the file is wrong.
    """
    return {each.number: each for each in read_profile(DIRECTORY / "accelerators" / "nvidia-xid.toml", XidFile).xids}


def trouble(gpu: Gpu, *, xid: int | None, known: XidFacts | None, ailment: Ailment | None) -> DeviceTrouble:
    """What a person is told of an error, of what the device answers when it is asked, or of both."""
    lost = bool((known and known.lost) or (ailment and ailment.lost))
    said = [] if xid is None else [f"Xid {xid}, {'which is not known here' if known is None else known.meaning}"]
    said += [] if ailment is None else [ailment.words]
    verb = " is lost: " if lost else ": " if xid is None else " reported "
    hints = [_RESET] if lost else []
    hints += [] if known is None else [f"NVIDIA's words on it: {known.source}"]
    return DeviceTrouble(
        uuid=gpu.uuid,
        index=gpu.number,
        name=gpu.name,
        xid=xid,
        lost=lost,
        message=f"GPU {gpu.number} ({gpu.name}){verb}{'; '.join(said)}",
        hint="; ".join(hints) or None,
        slices=gpu.slices,
    )


class DeviceWatch:
    """A thread that watches the GPUs of this machine; none where there is no driver of NVIDIA's.

    Args:
        on_trouble: called from the thread, once a device and fault; a device that is lost is not spoken of again. It
            must not raise.
        period_seconds: how often each device is asked.
        wait_seconds: how long a wait for an error lasts, and so about how long :meth:`close` does.
        retry_seconds: after how long a driver that could not be asked is tried again.
    """

    def __init__(
        self,
        on_trouble: Callable[[DeviceTrouble], None],
        *,
        period_seconds: float = PERIOD_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_trouble = on_trouble
        self._period_seconds = period_seconds
        self._wait_seconds = wait_seconds
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._finding: Finding | None = None
        self._xids: dict[int, XidFacts] = {}
        self._told = Told()
        self._gpus: dict[int, Gpu] = {}
        self._lost: set[int] = set()
        self._events: object | None = None
        self._was_watched = False

    @property
    def finding(self) -> Finding | None:
        """Whether devices are watched, and if not why; ``None`` before the driver has answered."""
        return self._finding

    @property
    def is_running(self) -> bool:
        """Whether the thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begins to watch, where there is a driver's library.

        Raises:
            ProfileError: the table of errors is wrong.
        """
        if not is_installed():
            self._finding = Finding(probe="nvidia", outcome="absent", reason=f"{LIBRARY_NAME} was not found")
            return
        self._xids = known_xids()
        self._thread = threading.Thread(target=self._run, name="device-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. One that hangs in the driver is left behind after :data:`CLOSE_SECONDS`.

        It is not to be called from ``on_trouble``.
        """
        self._ending.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    # --- in the thread

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                with Nvml.open() as nvml:
                    self._watch(nvml)
            except NvmlFailure as failure:
                self._failed(failure)
            self._ending.wait(self._retry_seconds)

    def _failed(self, failure: NvmlFailure) -> None:
        """The driver cannot be asked. It is told once, and not when it never could: that the probe has told."""
        self._finding = Finding(probe="nvidia", outcome="failed", reason=failure.explained)
        if self._was_watched:
            self._was_watched = False
            message = f"the NVIDIA driver cannot be asked any more: {failure.explained}"
            hint = "the GPUs are not watched until it answers again; look at nvidia-smi and at dmesg"
            self._on_trouble(DeviceTrouble(name="NVIDIA driver", lost=False, message=message, hint=hint))

    def _watch(self, nvml: Nvml) -> None:
        """Watches until the end.

        Raises:
            NvmlFailure: the driver cannot be asked any more.
        """
        self._lost.clear()  # a driver that was loaded anew has new devices
        self._gpus = {gpu.number: gpu for gpu in gpus(nvml)}
        if not self._gpus:
            self._finding = Finding(probe="nvidia", outcome="absent", reason="the driver is loaded and counts no GPU")
            return
        self._check(nvml)
        for number in self._gpus.keys() - self._lost:
            self._told.forget(number)  # it is well: what happens from here on is new
        self._finding = Finding(probe="nvidia", outcome="found")
        self._was_watched = True
        try:
            self._register(nvml)
            self._listen(nvml)
        finally:
            self._release(nvml)

    def _register(self, nvml: Nvml) -> None:
        self._events = nvml.watch_xids(
            gpu.handle for gpu in self._gpus.values() if gpu.handle is not None and gpu.number not in self._lost
        )

    def _release(self, nvml: Nvml) -> None:
        events, self._events = self._events, None
        if events is not None:
            nvml.free(events)

    def _listen(self, nvml: Nvml) -> None:
        checked, burst = self._clock(), 0
        while not self._ending.is_set():
            due_seconds = checked + self._period_seconds - self._clock()
            if due_seconds <= 0:
                self._check(nvml)
                checked = self._clock()
                continue
            if self._events is None:
                self._ending.wait(due_seconds)
                continue
            try:
                xid = nvml.next_xid(self._events, min(self._wait_seconds, due_seconds))
            except NvmlFailure as failure:
                if failure.is_of_driver:
                    raise
                # One lost device can spoil the wait for all: without it once more, else they are only asked.
                lost = len(self._lost)
                self._check(nvml)
                self._release(nvml)
                if len(self._lost) > lost:
                    self._register(nvml)
                continue
            burst = 0 if xid is None else burst + 1
            if xid is not None:
                self._on_xid(nvml, xid)
            if burst >= BURST:
                self._ending.wait(PAUSE_SECONDS)
                burst = 0

    def _on_xid(self, nvml: Nvml, xid: Xid) -> None:
        gpu = next((each for each in self._gpus.values() if each.handle and key(each.handle) == xid.device), None)
        if gpu is None:
            self._check(nvml)  # some device is in trouble, whichever it is
            return
        known = self._xids.get(xid.number)
        loses = known is not None and known.lost
        if gpu.number in self._lost:
            return
        if not loses and not self._told.is_news(gpu.number, f"Xid {xid.number}", self._clock()):
            return
        ailment = None if loses else ailment_of(nvml, gpu)
        self._tell(gpu, trouble(gpu, xid=xid.number, known=known, ailment=ailment), ailment)

    def _check(self, nvml: Nvml) -> None:
        for gpu in self._gpus.values():
            if gpu.number in self._lost:
                continue
            ailment = ailment_of(nvml, gpu)
            if ailment is not None:
                self._tell(gpu, trouble(gpu, xid=None, known=None, ailment=ailment), ailment)

    def _tell(self, gpu: Gpu, found: DeviceTrouble, ailment: Ailment | None) -> None:
        """Tells it, unless what the device answers was all there is to tell and is known already."""
        now = self._clock()
        is_news = found.xid is not None
        if found.lost:
            self._lost.add(gpu.number)
            is_news = self._told.is_news(gpu.number, _LOST, now)
        elif ailment is not None:
            is_news = self._told.is_news(gpu.number, ailment.words, now) or is_news
        if is_news:
            self._on_trouble(found)
