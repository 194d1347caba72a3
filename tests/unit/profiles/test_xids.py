"""What the numbers mean that the NVIDIA driver reports errors by, here and in the patterns of engines' output."""

from __future__ import annotations

import pytest

from engines.logs import classify
from profiles import DIRECTORY
from selector.catalog import read_profile
from selector.facts import XidFile

KNOWN = read_profile(DIRECTORY / "accelerators" / "nvidia-xid.toml", XidFile).xids
#: The immediate actions of NVIDIA's catalogue that end in a reset or a reboot; the workflow of 48 and of NVLink do.
RESETS = {"RESET_GPU", "RESTART_BM", "RESTART_VM", "CHECK_MECHANICALS", "WORKFLOW_XID_48", "WORKFLOW_NVLINK_ERR"}


def line(number: int, rest: str = "pid='<unknown>', name=<unknown>, words") -> tuple[str, ...]:
    return (f"[ 8831.2] NVRM: Xid (PCI:0000:3b:00): {number}, {rest}",)


def test_each_number_is_told_once_and_in_order() -> None:
    numbers = [each.number for each in KNOWN]
    assert numbers == sorted(set(numbers))


def test_a_gpu_is_lost_where_nvidia_asks_for_a_reset_and_else_a_note_says_why_not() -> None:
    assert {each.number for each in KNOWN if each.lost and each.action not in RESETS} == set()
    assert {each.number for each in KNOWN if not each.lost and each.action in RESETS} == {109}
    assert {each.number for each in KNOWN if each.number == 109 and each.note} == {109}


@pytest.mark.parametrize("number", [79, 48, 64, 74, 95, 119, 120])
def test_an_error_that_needs_a_reset_loses_the_gpu(number: int) -> None:
    assert {each.lost for each in KNOWN if each.number == number} == {True}


@pytest.mark.parametrize("number", [13, 31, 43, 45, 63, 94])
def test_an_error_of_the_application_or_one_to_know_of_does_not(number: int) -> None:
    assert {each.lost for each in KNOWN if each.number == number} == {False}


def test_a_line_of_the_kernel_is_read_as_the_driver_is() -> None:
    lost = {each.number for each in KNOWN if each.lost}
    told = {number for number in range(1, 400) if classify(line(number), engine="vllm").cause == "device lost"}
    assert told == lost


@pytest.mark.parametrize(
    ("action", "lost"),
    [
        ("0x1 (GPU Reset Required)", True),
        ("0x2 (Node Reboot Required)", True),
        ("0x4 (Drain and Reset)", False),
        ("0x0 (None)", False),
    ],
)
def test_a_changed_recovery_action_is_read_by_what_it_asks_for(action: str, lost: bool) -> None:
    read = classify(line(154, f"GPU recovery action changed from 0x3 (Drain P2P) to {action}"), engine="vllm")
    assert (read.cause == "device lost") == lost
