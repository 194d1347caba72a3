"""The one place where NVML is called: which codes are an answer, which are nothing, which are a failure."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest

from selector.probe.nvml import TIMEOUT, UNINITIALIZED, Nvml, NvmlFailure
from tests.fakes.nvml.stub import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    VERSION_MISMATCH,
)


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


def answering(error: Exception, name: str = "call") -> Nvml:
    """An NVML whose only call fails with ``error``."""

    def call(*_: object) -> None:
        raise error

    library = ModuleType("pynvml")
    library.NVMLError = NvmlError  # type: ignore[attr-defined]  # pynvml's shape
    setattr(library, name, call)
    return Nvml(library)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION])
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_not_told_is_none(code: int, strict: bool) -> None:
    assert answering(NvmlError(code)).ask("call", strict=strict) is None


def test_a_passing_failure_is_none_unless_the_answer_is_needed() -> None:
    nvml = answering(NvmlError(UNKNOWN))
    assert nvml.ask("call") is None
    with pytest.raises(NvmlFailure, match="code 999"):
        nvml.ask("call", strict=True)


def test_a_gone_device_is_a_failure_whatever_it_was_asked() -> None:
    with pytest.raises(NvmlFailure) as failure:
        answering(NvmlError(GPU_IS_LOST)).number("call")
    assert (failure.value.nvml_code, failure.value.exit_code) == (GPU_IS_LOST, 4)


def test_text_that_is_not_utf8_is_none() -> None:
    assert answering(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")).text("call") is None


def test_a_call_this_pynvml_does_not_have_is_none() -> None:
    assert answering(NvmlError(UNKNOWN)).ask("nvmlDeviceGetSomethingNewer", strict=True) is None


def test_a_wait_without_an_error_is_no_failure_and_one_that_breaks_is() -> None:
    assert answering(NvmlError(TIMEOUT), "nvmlEventSetWait_v2").next_xid(object(), 1.0) is None
    with pytest.raises(NvmlFailure) as failure:
        answering(NvmlError(GPU_IS_LOST), "nvmlEventSetWait_v2").next_xid(object(), 1.0)
    assert (failure.value.is_gone, failure.value.is_of_driver) == (True, False)


@pytest.mark.parametrize("code", [UNINITIALIZED, DRIVER_NOT_LOADED, VERSION_MISMATCH])
def test_what_is_wrong_with_the_driver_is_told_apart_from_what_is_wrong_with_a_device(code: int) -> None:
    failure = NvmlFailure(code, "said.")
    assert (failure.is_gone, failure.is_of_driver) == (False, True)
    assert failure.explained.startswith("said")


def test_a_driver_without_event_sets_is_watched_without_them() -> None:
    assert answering(NvmlError(NOT_SUPPORTED), "nvmlEventSetCreate").watch_xids([object()]) is None


@pytest.mark.parametrize(
    ("number", "lost", "words"),
    [(1, True, "a reset of the GPU"), (4, False, "once its work is done"), (77, False, "recovery action 77")],
)
def test_what_the_driver_asks_for_says_whether_the_gpu_is_lost(number: int, lost: bool, words: str) -> None:
    action = telling(number).recovery_action(object())
    assert action is not None
    assert (action.lost, words in action.words) == (lost, True)


def test_a_driver_that_asks_for_nothing_loses_nothing() -> None:
    assert telling(0).recovery_action(object()) is None


def telling(number: int) -> Nvml:
    """An NVML whose every field value is ``number``."""
    value = SimpleNamespace(nvmlReturn=0, valueType=1, value=SimpleNamespace(uiVal=number))
    library = ModuleType("pynvml")
    library.NVMLError = NvmlError  # type: ignore[attr-defined]  # pynvml's shape
    library.nvmlDeviceGetFieldValues = lambda _handle, _fields: [value]  # type: ignore[attr-defined]
    return Nvml(library)
