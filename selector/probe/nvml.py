"""The one place where NVML is called: its codes become an answer, ``None``, or :class:`NvmlFailure`.

The module ``pynvml`` comes from the package nvidia-ml-py. It loads the driver's library by name.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

from selector.errors import ProbeError

LIBRARY_NAME = "libnvidia-ml.so.1"

# nvmlReturn_t of nvml.h: a stable interface, written out so that the codes can be read before pynvml is loaded.
UNINITIALIZED = 1
NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
OPERATING_SYSTEM = 17
LIB_RM_VERSION_MISMATCH = 18

#: Codes by which the driver as a whole cannot be asked any more.
_NO_DRIVER = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, OPERATING_SYSTEM, LIB_RM_VERSION_MISMATCH})

#: Codes of a device that is no longer there for work; nothing it says after them is worth keeping.
_GONE = frozenset(
    {
        8,  # INSUFFICIENT_POWER: its auxiliary power is not plugged in
        11,  # IRQ_ISSUE: the kernel sees interrupt trouble with it
        15,  # GPU_IS_LOST: fell off the bus
        16,  # RESET_REQUIRED
        28,  # GPU_NOT_FOUND
    }
)
#: Codes that mean "this driver or device does not tell", as opposed to "something is wrong".
_NOT_TOLD = frozenset(
    {
        NOT_SUPPORTED,
        NO_PERMISSION,
        6,  # NOT_FOUND
        13,  # FUNCTION_NOT_FOUND: a driver older than the call
        21,  # NO_DATA
        25,  # ARGUMENT_VERSION_MISMATCH
        26,  # DEPRECATED
    }
)

_WHY = {
    DRIVER_NOT_LOADED: "the driver's library is installed, but its kernel module is not loaded (try `modprobe nvidia`, "
    "or reboot after an update)",
    LIB_RM_VERSION_MISMATCH: "the driver's library and its kernel module have different versions: it was updated while "
    "loaded (reboot, or reload the module)",
    NO_PERMISSION: "this user may not talk to the driver (/dev/nvidiactl and /dev/nvidia* must be readable and "
    "writable)",
}

#: nvmlEventTypeXidCriticalError of nvml.h.
_XID_EVENTS = 0x8
#: NVML_FI_DEV_GET_GPU_RECOVERY_ACTION of nvml.h, of drivers from 565 on.
_RECOVERY_ACTION = 230
#: nvmlDeviceGpuRecoveryAction_t of nvml.h; 0 is none, and beyond 4 the numbers differ between its versions. Under 3 and
#: 4 what runs may go on: https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/error-recovery-and-response-flags.html
_RECOVERY_ACTIONS = {
    1: ("a reset of the GPU", True),
    2: ("a reboot of the host", True),
    3: ("an end of the traffic between GPUs", False),
    4: ("a reset of the GPU once its work is done", False),
}


class NvmlFailure(ProbeError):
    """An NVML call failed. ``nvml_code`` is its nvmlReturn_t."""

    code = "probe.nvidia"

    def __init__(self, nvml_code: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.nvml_code = nvml_code

    @property
    def is_gone(self) -> bool:
        """Whether the device that was asked is no longer there for work."""
        return self.nvml_code in _GONE

    @property
    def is_of_driver(self) -> bool:
        """Whether no device can be asked any more."""
        return self.nvml_code in _NO_DRIVER

    @property
    def explained(self) -> str:
        """What NVML says, and what that means where it is known. Without a full stop."""
        said, why = self.message.rstrip("."), _WHY.get(self.nvml_code)
        return f"{said}: {why}" if why else said


class Xid(NamedTuple):
    """An error that the driver reports. ``device`` is its :func:`key`."""

    device: int
    number: int


class RecoveryAction(NamedTuple):
    """What the driver asks for after an error. ``lost``: until then the GPU cannot be used."""

    words: str
    lost: bool


def is_installed() -> bool:
    """Whether there is a driver's library to load. (That it can be initialised is another question.)"""
    import ctypes

    try:
        ctypes.CDLL(LIBRARY_NAME)
    except OSError:
        return False
    return True


def key(handle: Any) -> int:
    """What is equal for equal handles of devices: pynvml makes new objects, NVML hands out the same addresses."""
    import ctypes

    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _pynvml() -> ModuleType:
    if "pynvml" not in sys.modules:  # the filters of warnings are the whole process's: left alone where they can be
        import warnings

        with warnings.catch_warnings():
            # The unrelated package named pynvml, where it is installed too, warns about itself at import.
            warnings.simplefilter("ignore", FutureWarning)
            import pynvml
    import pynvml

    loaded: ModuleType = pynvml
    return loaded


class Nvml:
    """An initialised NVML; a context manager that shuts it down."""

    def __init__(self, library: ModuleType) -> None:
        self._library = library

    @classmethod
    def open(cls) -> Self:
        """Load and initialise NVML.

        Raises:
            NvmlFailure: with the code of nvmlInit, or :data:`LIBRARY_NOT_FOUND`.
        """
        # Asked before pynvml is: most machines without a GPU end here, and its 8000 lines need not be loaded.
        if not is_installed():
            raise NvmlFailure(LIBRARY_NOT_FOUND, f"{LIBRARY_NAME} was not found")
        pynvml = _pynvml()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlFailure(error.value, str(error)) from error
        return cls(pynvml)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ask("nvmlShutdown")

    def ask(self, call: str, *arguments: object, strict: bool = False) -> Any:
        """Make one call.

        Returns:
            What pynvml returns, or ``None`` where it is not told: the device or driver does not support it, the
            text is not UTF-8, or, unless ``strict``, it failed in a way that leaves the device usable.

        Raises:
            NvmlFailure: the device is gone; with ``strict``, any failure.
        """
        function = getattr(self._library, call, None)
        if function is None:  # a pynvml older than the call
            return None
        try:
            return function(*arguments)
        except UnicodeDecodeError:
            return None
        except self._library.NVMLError as error:
            told_nothing = error.value in _NOT_TOLD if strict else error.value not in _GONE
            if told_nothing:
                return None
            raise NvmlFailure(error.value, str(error)) from error

    def require(self, call: str, *arguments: object) -> Any:
        """As :meth:`ask`, where no answer is a failure too.

        Raises:
            NvmlFailure: for every failure.
        """
        try:
            return getattr(self._library, call)(*arguments)
        except self._library.NVMLError as error:
            raise NvmlFailure(error.value, str(error)) from error

    def text(self, call: str, *arguments: object) -> str | None:
        answer = self.ask(call, *arguments)
        return answer if isinstance(answer, str) else None

    def number(self, call: str, *arguments: object) -> int | None:
        answer = self.ask(call, *arguments)
        return answer if isinstance(answer, int) else None

    def constant(self, name: str, default: int) -> int:
        """A constant of pynvml, or ``default`` where its version has none of that name."""
        value = getattr(self._library, name, default)
        return value if isinstance(value, int) else default

    def field(self, handle: object, field: int, scope: int) -> int | None:
        """A whole-number field value (nvmlDeviceGetFieldValues), or ``None``."""
        values = self.ask("nvmlDeviceGetFieldValues", handle, [(field, scope)])
        if not values or values[0].nvmlReturn != 0:
            return None
        # nvmlValueType_t: which member of the union was written.
        member = {1: "uiVal", 2: "ulVal", 3: "ullVal"}.get(values[0].valueType)
        return None if member is None else int(getattr(values[0].value, member))

    def recovery_action(self, handle: object) -> RecoveryAction | None:
        """What the driver asks for before the device may be used again, or ``None``: nothing, or it does not tell.

        Raises:
            NvmlFailure: the device is gone.
        """
        number = self.field(handle, _RECOVERY_ACTION, 0)
        if not number:
            return None
        return RecoveryAction(*_RECOVERY_ACTIONS.get(number, (f"what it calls recovery action {number}", False)))

    def fabric(self, handle: object) -> tuple[int, int] | None:
        """How far a GPU is registered with its NVSwitches: nvmlGpuFabricState_t, and the nvmlReturn_t of that.

        ``None``: it has none, or the driver does not tell.

        Raises:
            NvmlFailure: the device is gone.
        """
        import ctypes

        kind = getattr(self._library, "c_nvmlGpuFabricInfo_t", None)
        if kind is None:  # a pynvml older than the call
            return None
        info = kind()
        if self.ask("nvmlDeviceGetGpuFabricInfo", handle, ctypes.byref(info)) is None or info.state == 0:
            return None
        return int(info.state), int(info.status)

    def watch_xids(self, handles: Iterable[object]) -> object | None:
        """An event set of the errors of these devices, to be freed with :meth:`free`; ``None`` where none tells them.

        Raises:
            NvmlFailure: the driver cannot be asked any more.
        """
        events: object | None = self.ask("nvmlEventSetCreate")
        if events is None:
            return None
        watched = 0
        for handle in handles:
            try:
                if (self.number("nvmlDeviceGetSupportedEventTypes", handle) or 0) & _XID_EVENTS:
                    self.require("nvmlDeviceRegisterEvents", handle, _XID_EVENTS, events)
                    watched += 1
            except NvmlFailure as failure:
                if failure.is_of_driver:
                    self.free(events)
                    raise
                # That device is lost, or tells no events after all; it is asked, like all of them, now and then.
        if not watched:
            self.free(events)
            return None
        return events

    def next_xid(self, events: object, timeout_seconds: float) -> Xid | None:
        """The next error of a watched device, or ``None`` when there was none in so long.

        Raises:
            NvmlFailure: for every failure but the time that is over.
        """
        try:
            event = self.require("nvmlEventSetWait_v2", events, round(timeout_seconds * 1000))
        except NvmlFailure as failure:
            if failure.nvml_code == TIMEOUT:
                return None
            raise
        return Xid(key(event.device), int(event.eventData)) if event.eventType & _XID_EVENTS else None

    def free(self, events: object) -> None:
        """Gives an event set back. A driver that is gone has none to take back."""
        with contextlib.suppress(NvmlFailure):
            self.ask("nvmlEventSetFree", events)

    def bus_id(self, call: str, *arguments: object) -> str | None:
        """The PCI address of a call that answers an nvmlPciInfo_t, as sysfs writes it (``0000:19:00.0``)."""
        info = self.ask(call, *arguments)
        if info is None:
            return None
        try:
            address = str(info.busId).lower()
        except UnicodeDecodeError:  # pynvml decodes members when they are read
            return None
        domain, _, rest = address.partition(":")
        # NVML writes the domain with eight digits, the kernel with four (more only where they are needed).
        return f"{domain.lstrip('0').rjust(4, '0')}:{rest}" if rest else None
