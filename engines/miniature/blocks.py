"""llama.cpp's K-quants, for miniatures: blocks of 256 weights, random but for their scales.

The layouts are those of ``ggml-common.h``, what a block's bits mean that of ``ggml-quants.c``:
https://github.com/ggml-org/llama.cpp (b11434). Every pattern of bits is a weight; the scales inside a block are
constant, and its float16 factors give a row its spread, or a row of signs its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from struct import pack
from typing import Literal

from engines.miniature.tensors import Signs, Tensor, drawn_bits, overwritten
from selector.values import Value

BLOCK_WEIGHTS = 256

Kind = Literal["F32", "BF16", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


class Block(Value, frozen=True, kw_only=True):
    """A kind of block. A weight is ``step`` times its ``bits``, less ``middle`` steps.

    ``scales`` are constant bytes at ``scales_at``, ``step`` the number they stand for; the factor of it lies at
    ``factor_at``, followed, where ``has_least``, by that of the least weight (as many steps: ``middle``).
    """

    number: int
    size_bytes: int
    bits: int
    scales_at: int
    scales: bytes
    step: int
    factor_at: int
    has_least: bool
    middle: float


BLOCKS: dict[str, Block] = {
    "Q2_K": Block(
        number=10, size_bytes=84, bits=2, scales_at=0, scales=b"\x88" * 16, step=8, factor_at=80, has_least=True,
        middle=1.5,
    ),
    "Q3_K": Block(
        number=11, size_bytes=110, bits=3, scales_at=96, scales=bytes(8) + b"\xff\x55" * 2, step=16, factor_at=108,
        has_least=False, middle=4,
    ),
    "Q4_K": Block(
        number=12, size_bytes=144, bits=4, scales_at=4, scales=b"\xa0" * 8 + bytes(4), step=32, factor_at=0,
        has_least=True, middle=7.5,
    ),
    "Q5_K": Block(
        number=13, size_bytes=176, bits=5, scales_at=4, scales=b"\xa0" * 8 + bytes(4), step=32, factor_at=0,
        has_least=True, middle=15.5,
    ),
    "Q6_K": Block(
        number=14, size_bytes=210, bits=6, scales_at=192, scales=b"\x20" * 16, step=32, factor_at=208,
        has_least=False, middle=32,
    ),
}  # fmt: skip
#: Blocks in a chunk.
_CHUNK_BLOCKS = 4096


def size_bytes(kind: str, weights: int) -> int:
    """Of ``weights`` in blocks of ``kind``."""
    return weights // BLOCK_WEIGHTS * BLOCKS[kind].size_bytes


def data(kind: str, name: str, parts: tuple[Tensor, ...]) -> Iterator[bytearray]:
    """``parts``, one after the other, as blocks of ``kind``; ``name`` is the stream of their bits.

    Each fill keeps its spread, each row of signs its signs and size.
    """
    block = BLOCKS[kind]
    for number, part in enumerate(parts):
        width = part.shape[-1]
        rows = tuple((signs.row, _signs(kind, signs, width)) for signs in part.signs)
        yield from overwritten(_drawn(block, f"{name}/{number}", part), rows)


def _drawn(block: Block, name: str, part: Tensor) -> Iterator[bytearray]:
    # Bits as a number, 0 to 2**bits - 1, have this standard deviation.
    natural = math.sqrt((4**block.bits - 1) / 12)
    for number, fill in enumerate(part.fills):
        factors = _factors(block, fill.spread / natural / block.step)
        left = fill.elements // BLOCK_WEIGHTS
        for place in range(0, left, _CHUNK_BLOCKS):
            count = min(_CHUNK_BLOCKS, left - place)
            chunk = bytearray().join(drawn_bits(f"{name}/{number}/{place}", count * block.size_bytes))
            for at, constant in ((block.scales_at, block.scales), (block.factor_at, factors)):
                for offset, byte in enumerate(constant, start=at):
                    chunk[offset :: block.size_bytes] = bytes((byte,)) * count
            yield chunk


def _factors(block: Block, factor: float) -> bytes:
    return pack("<ee", factor, factor * block.middle) if block.has_least else pack("<e", factor)


def _signs(kind: str, signs: Signs, width: int) -> bytes:
    """A row whose weights are all of one size."""
    block, positive = BLOCKS[kind], signs.positive(width)
    least, most = (0, 31) if kind == "Q5_K" else (0, 15)
    if kind == "Q6_K":  # 31 steps to either side of the middle
        least, most = 1, 63
    factors = _factors(block, signs.size / block.step / (most - block.middle))
    row = bytearray()
    for start in range(0, width, BLOCK_WEIGHTS):
        weights = [most if each else least for each in positive[start : start + BLOCK_WEIGHTS]]
        body = bytearray(block.size_bytes)
        _PACKERS[kind](body, weights)
        body[block.scales_at : block.scales_at + len(block.scales)] = block.scales
        body[block.factor_at : block.factor_at + len(factors)] = factors
        row += body
    return bytes(row)


def _pack_q4(body: bytearray, weights: list[int], at: int = 16) -> None:
    for place, weight in enumerate(weights):
        group, inside = divmod(place, 64)
        body[at + group * 32 + inside % 32] |= (weight & 15) << inside // 32 * 4


def _pack_q5(body: bytearray, weights: list[int]) -> None:
    _pack_q4(body, weights, at=48)
    for place, weight in enumerate(weights):
        body[16 + place % 32] |= (weight >> 4) << place // 32


def _pack_q6(body: bytearray, weights: list[int]) -> None:
    for place, weight in enumerate(weights):
        half, inside = divmod(place, 128)
        quarter, byte = divmod(inside, 32)
        body[half * 64 + quarter % 2 * 32 + byte] |= (weight & 15) << quarter // 2 * 4
        body[128 + half * 32 + byte] |= (weight >> 4) << quarter * 2


#: Kinds that an embedding or a head may be in.
_PACKERS = {"Q4_K": _pack_q4, "Q5_K": _pack_q5, "Q6_K": _pack_q6}
