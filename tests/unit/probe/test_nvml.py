"""The one place where NVML is called: which codes are an answer, which are nothing, which are a failure."""

from __future__ import annotations

from types import ModuleType

import pytest

from selector.probe.nvml import Nvml, NvmlFailure
from tests.fakes.nvml.stub import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, UNKNOWN


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


def answering(error: Exception) -> Nvml:
    """An NVML whose only call fails with ``error``."""

    def call() -> None:
        raise error

    library = ModuleType("pynvml")
    library.NVMLError = NvmlError  # type: ignore[attr-defined]  # pynvml's shape
    library.call = call  # type: ignore[attr-defined]
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
