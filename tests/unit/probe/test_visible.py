"""CUDA_VISIBLE_DEVICES, read as CUDA reads it."""

from __future__ import annotations

import pytest

from selector.hardware import Accelerator
from selector.probe.visible import visible


def gpu(index: int, uuid: str, parent: str | None = None) -> Accelerator:
    return Accelerator(index=index, uuid=uuid, vendor="nvidia", name="GPU", mig_parent_uuid=parent)


#: GPU 1 is in MIG mode; GPU 3 is missing (lost).
DEVICES = {
    0: (gpu(0, "GPU-aaaa1111-0000"),),
    1: (gpu(5, "MIG-cccc0001", "GPU-bbbb0000-0000"), gpu(6, "MIG-cccc0002", "GPU-bbbb0000-0000")),
    2: (gpu(2, "GPU-aaaa2222-0000"),),
    4: (gpu(4, "GPU-dddd0000-0000"),),
}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, [0, 2, 4, 5, 6]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 2 , 0 ", [2, 0]),
        ("0,-1,2", [0]),  # the list ends at the first entry that is no device
        ("0,9,2", [0]),
        ("0,,2", [0]),
        ("0,3,2", [0]),  # a lost GPU is no device either
        ("0,two,2", [0]),
        ("0,99999999999999999999999999,2", [0]),
        ("0,²,2", [0]),  # a digit to Python, not to CUDA
        ("0,0", []),  # naming a device twice hides all
        ("0,2,0", []),
        ("GPU-dddd0000-0000", [4]),
        ("GPU-aaaa2", [2]),  # a prefix that is unique will do
        ("GPU-aaaa", []),  # and one that is not ends the list
        ("GPU-dddd,GPU-aaaa,0", [4]),
        ("gpu-dddd0000-0000", []),
        ("dddd0000-0000", []),
        ("1", [5]),  # a GPU in MIG mode: its first slice
        ("GPU-bbbb0000-0000", [5]),
        ("MIG-cccc0002", [6]),
        ("MIG-cccc", []),
        ("MIG-cccc0002,MIG-cccc0001", [6, 5]),
        ("GPU-", []),
    ],
)
def test_the_list_shows_what_cuda_would_show(value: str | None, shown: list[int]) -> None:
    assert [device.index for device in visible(value, DEVICES)] == shown


def test_a_mask_on_a_machine_without_gpus_shows_none() -> None:
    assert visible("0,1", {}) == ()
