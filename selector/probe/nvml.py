"""The one place where NVML is called: its codes become an answer, ``None``, or :class:`NvmlFailure`.

The module ``pynvml`` comes from the package nvidia-ml-py. It loads the driver's library by name.
"""

from __future__ import annotations

from types import ModuleType, TracebackType
from typing import Any, Self

from selector.errors import ProbeError

LIBRARY_NAME = "libnvidia-ml.so.1"

# nvmlReturn_t of nvml.h: a stable interface, written out so that the codes can be read before pynvml is loaded.
NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
LIB_RM_VERSION_MISMATCH = 18

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


class NvmlFailure(ProbeError):
    """An NVML call failed. ``nvml_code`` is its nvmlReturn_t."""

    code = "probe.nvidia"

    def __init__(self, nvml_code: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.nvml_code = nvml_code


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
        import ctypes

        # Asked before pynvml is: most machines without a GPU end here, and its 8000 lines need not be loaded.
        try:
            ctypes.CDLL(LIBRARY_NAME)
        except OSError as error:
            raise NvmlFailure(LIBRARY_NOT_FOUND, f"{LIBRARY_NAME} was not found") from error

        import warnings

        with warnings.catch_warnings():
            # The unrelated package named pynvml, where it is installed too, warns about itself at import.
            warnings.simplefilter("ignore", FutureWarning)
            import pynvml

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
