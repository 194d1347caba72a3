from __future__ import annotations

import click
import pytest

from autolaunch.cli.asked import Asked
from autolaunch.cli.options import Gpus, Port, Share, Tokens, Whole, Word
from selector.errors import UsageError
from selector.hardware import Accelerator, HardwareReport, Host


def converted(kind: click.ParamType, text: str) -> object:  # type: ignore[type-arg]
    return kind.convert(text, None, None)


@pytest.mark.parametrize(("text", "tokens"), [("32768", 32768), ("128k", 131072), ("8K", 8192)])
def test_tokens_are_plain_or_in_units_of_1024(text: str, tokens: int) -> None:
    assert converted(Tokens(), text) == tokens


@pytest.mark.parametrize("text", ["0", "-1", "", "1.5", "k", "128m", "9999999k", "٣"])
def test_what_is_no_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        converted(Tokens(), text)


@pytest.mark.parametrize(
    ("text", "count", "indices"), [("2", 2, None), ("0,1", None, (0, 1)), ("3,", None, (3,)), ("0, 2", None, (0, 2))]
)
def test_gpus_are_a_count_or_these(text: str, count: int | None, indices: tuple[int, ...] | None) -> None:
    pins = Asked(model="x", gpus=str(converted(Gpus(), text))).pins()
    assert (pins.gpu_count, pins.gpus) == (count, indices)


@pytest.mark.parametrize("text", ["0", "0,0", "1,01", ",", "", "a", "GPU-x$(y)", "GPU-aa,GPU-AA", "0;1"])
def test_gpus_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        converted(Gpus(), text)


def test_a_uuid_names_its_device_by_its_beginning() -> None:
    devices = tuple(
        Accelerator(index=index, uuid=uuid, vendor="nvidia", name="x")
        for index, uuid in enumerate(("GPU-aa11", "GPU-aa22", "GPU-bb33"))
    )
    report = HardwareReport(host=Host(os="linux"), accelerators=devices)
    assert Asked(model="x", gpus="gpu-bb,gpu-aa1").pins(report).gpus == (2, 0)
    with pytest.raises(UsageError, match="2 devices have"):
        Asked(model="x", gpus="gpu-aa").pins(report)
    with pytest.raises(UsageError, match="no device has"):
        Asked(model="x", gpus="gpu-cc").pins(report)


def test_two_beginnings_of_one_uuid_are_one_gpu_named_twice() -> None:
    device = Accelerator(index=3, uuid="GPU-aa11", vendor="nvidia", name="x")
    report = HardwareReport(host=Host(os="linux"), accelerators=(device,))
    with pytest.raises(UsageError, match="names GPU 3 twice"):
        Asked(model="x", gpus="GPU-aa,GPU-aa1").pins(report)


@pytest.mark.parametrize("text", ["nan", "inf", "0", "1.01", "-0.5", "x", ""])
def test_a_share_is_above_0_and_at_most_1(text: str) -> None:
    with pytest.raises(click.BadParameter):
        converted(Share(), text)
    assert converted(Share(), "1") == 1.0


@pytest.mark.parametrize("text", ["0", "-3", "1e3", "99999999", ""])
def test_a_count_is_a_whole_number_from_1_up(text: str) -> None:
    with pytest.raises(click.BadParameter):
        converted(Whole(), text)


@pytest.mark.parametrize("text", ["65536", "-1", "http", ""])
def test_a_port_is_one(text: str) -> None:
    with pytest.raises(click.BadParameter):
        converted(Port(), text)
    assert converted(Port(), "0") == 0


@pytest.mark.parametrize("text", ["", " ", "--host", "a\nb", "\x1b[2J", "x" * 301])
def test_a_name_is_one_line_and_no_option(text: str) -> None:
    with pytest.raises(click.BadParameter):
        converted(Word(), text)


def test_what_was_not_pinned_stays_free() -> None:
    pins = Asked(model="x").pins()
    assert all(getattr(pins, name) is None for name in type(pins).__struct_fields__)
