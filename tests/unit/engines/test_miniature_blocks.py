"""llama.cpp's blocks: read back with a reader of ``ggml-quants.c``, written apart from the writer."""

from __future__ import annotations

import math
from struct import unpack_from

import pytest

from engines.miniature import blocks as miniature_blocks
from engines.miniature.blocks import BLOCKS
from engines.miniature.tensors import Fill, Signs, Tensor


def scale_and_least(scales: bytes, place: int) -> tuple[int, int]:
    if place < 4:
        return scales[place] & 63, scales[place + 4] & 63
    return (
        scales[place + 4] & 15 | scales[place - 4] >> 6 << 4,
        scales[place + 4] >> 4 | scales[place] >> 6 << 4,
    )


def q2(block: bytes) -> list[float]:
    factor, least = unpack_from("<ee", block, 80)
    found = []
    for place in range(256):
        half, inside = divmod(place, 128)
        quant = block[16 + half * 32 + inside % 32] >> inside // 32 * 2 & 3
        scale = block[place // 16]
        found.append(factor * (scale & 15) * quant - least * (scale >> 4))
    return found


def q3(block: bytes) -> list[float]:
    (factor,) = unpack_from("<e", block, 108)
    scales = block[96:108]
    found = []
    for place in range(256):
        half, inside = divmod(place, 128)
        low = block[32 + half * 32 + inside % 32] >> inside // 32 * 2 & 3
        high = block[inside % 32] >> place // 32 & 1
        group = place // 16
        packed = scales[group % 8] >> 4 * (group // 8) & 15 | (scales[8 + group % 4] >> 2 * (group // 4) & 3) << 4
        found.append(factor * (packed - 32) * (low - (0 if high else 4)))
    return found


def q4(block: bytes) -> list[float]:
    factor, least = unpack_from("<ee", block)
    found = []
    for place in range(256):
        scale, lowest = scale_and_least(block[4:16], place // 32)
        quant = block[16 + place // 64 * 32 + place % 32] >> place % 64 // 32 * 4 & 15
        found.append(factor * scale * quant - least * lowest)
    return found


def q5(block: bytes) -> list[float]:
    factor, least = unpack_from("<ee", block)
    found = []
    for place in range(256):
        scale, lowest = scale_and_least(block[4:16], place // 32)
        quant = block[48 + place // 64 * 32 + place % 32] >> place % 64 // 32 * 4 & 15
        quant |= (block[16 + place % 32] >> place // 32 & 1) << 4
        found.append(factor * scale * quant - least * lowest)
    return found


def q6(block: bytes) -> list[float]:
    (factor,) = unpack_from("<e", block, 208)
    found = []
    for place in range(256):
        half, inside = divmod(place, 128)
        quarter, byte = divmod(inside, 32)
        low = block[half * 64 + quarter % 2 * 32 + byte] >> quarter // 2 * 4 & 15
        high = block[128 + half * 32 + byte] >> quarter * 2 & 3
        found.append(factor * block[192 + place // 16] * ((low | high << 4) - 32))
    return found


READERS = {"Q2_K": q2, "Q3_K": q3, "Q4_K": q4, "Q5_K": q5, "Q6_K": q6}


def read(kind: str, tensor: Tensor) -> list[float]:
    raw = b"".join(miniature_blocks.data(kind, "x", (tensor,)))
    size = BLOCKS[kind].size_bytes
    assert len(raw) == miniature_blocks.size_bytes(kind, math.prod(tensor.shape))
    return [value for place in range(0, len(raw), size) for value in READERS[kind](raw[place : place + size])]


@pytest.mark.parametrize("kind", READERS)
def test_each_fill_of_a_tensor_keeps_its_spread_and_has_no_lean(kind: str) -> None:
    fills = (Fill(elements=20 * 256, spread=0.02), Fill(elements=20 * 256, spread=0.25))
    found = read(kind, Tensor(name="x", shape=(40, 256), fills=fills))
    for values, fill in ((found[: 20 * 256], fills[0]), (found[20 * 256 :], fills[1])):
        mean = sum(values) / len(values)
        assert math.sqrt(sum(value * value for value in values) / len(values)) == pytest.approx(fill.spread, rel=0.05)
        # A lean would add up over thousands of inputs.
        assert abs(mean) < fill.spread / 10


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_a_row_of_signs_is_of_one_size_in_each_kind_that_a_head_is_in(kind: str) -> None:
    signs = Signs(row=1, stream="s", size=0.125)
    fill = Fill(elements=3 * 512, spread=0.02)
    found = read(kind, Tensor(name="x", shape=(3, 512), fills=(fill,), signs=(signs,)))[512:1024]
    expected = [0.125 if each else -0.125 for each in signs.positive(512)]
    assert found == pytest.approx(expected, rel=0.01)


def test_parts_of_a_tensor_are_not_alike() -> None:
    part = Tensor(name="x", shape=(1, 256), fills=(Fill(elements=256, spread=0.02),))
    raw = b"".join(miniature_blocks.data("Q4_K", "x", (part, part)))
    assert raw[:144] != raw[144:]
