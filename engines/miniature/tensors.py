"""What a tensor of a miniature is made of: random values, rows of signs, or plain random bits.

Files are written a megabyte at a time in pure Python: the tool installs neither numpy nor torch. Every byte
depends on the tensor's name and shape alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from hashlib import shake_256
from statistics import NormalDist
from struct import pack
from typing import Literal

from selector.values import Value

#: Part of every random stream; of eight that were tried, the one whose answers repeat themselves least.
SEED = "autolaunch miniature 7"
#: Kinds of numbers, as safetensors names them, and their bytes.
Dtype = Literal["F32", "BF16", "F16", "F8_E4M3", "I32", "U32"]
WIDTHS: dict[Dtype, int] = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I32": 4, "U32": 4}
#: The largest value of F8_E4M3.
LARGEST_E4M3 = 448.0
_CHUNK_ELEMENTS = 1 << 18


class Fill(Value, frozen=True, kw_only=True):
    """``elements`` in a row, drawn from a normal distribution; exactly ``mean`` where ``spread`` is 0."""

    elements: int
    mean: float = 0.0
    spread: float = 0.0


class Signs(Value, frozen=True, kw_only=True):
    """A row of ``size`` or ``-size``, whose signs are those of every row of the same ``stream``.

    Without a stream the whole row is ``size``.
    """

    row: int
    stream: str | None
    size: float = 0.0

    def positive(self, width: int) -> tuple[bool, ...]:
        """Which of the row's elements are above 0: about half, or all."""
        if self.stream is None:
            return (True,) * width
        return tuple(byte < 128 for byte in shake_256(f"{SEED}/{self.stream}".encode()).digest(width))


class Tensor(Value, frozen=True, kw_only=True):
    """``fills`` cover the elements in row-major order; the rows of ``signs`` are written over them."""

    name: str
    shape: tuple[int, ...]
    fills: tuple[Fill, ...]
    signs: tuple[Signs, ...] = ()
    dtype: Dtype = "F32"

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]

    def data(self) -> Iterator[bytearray]:
        """The tensor's little-endian numbers, in chunks."""
        rows = tuple((signs.row, self._row(signs)) for signs in self.signs)
        return overwritten(self._drawn(), rows)

    def _drawn(self) -> Iterator[bytearray]:
        width = WIDTHS[self.dtype]
        for part, fill in enumerate(self.fills):
            tables = _tables(fill.mean, fill.spread, self.dtype)
            for number, start in enumerate(range(0, fill.elements, _CHUNK_ELEMENTS)):
                count = min(_CHUNK_ELEMENTS, fill.elements - start)
                if not fill.spread:
                    yield bytearray(code(fill.mean, self.dtype) * count)
                    continue
                draws = shake_256(f"{SEED}/{self.name}/{part}/{number}".encode()).digest(count)
                chunk = bytearray(count * width)
                for place, table in enumerate(tables):
                    if any(table):
                        chunk[place::width] = draws.translate(table)
                yield chunk

    def _row(self, signs: Signs) -> bytes:
        above, below = code(signs.size, self.dtype), code(-signs.size, self.dtype)
        return b"".join(above if each else below for each in signs.positive(self.shape[-1]))


class Bits(Value, frozen=True, kw_only=True):
    """Random bits: packed weights of ``bits`` each, any of which is a weight.

    In the rows of ``signs`` a weight is all ones or all zeros, the lowest bits first. Rows are counted over all
    dimensions but the last.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    bits: int = 4
    signs: tuple[Signs, ...] = ()

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]

    def data(self) -> Iterator[bytearray]:
        rows = tuple((signs.row, self._row(signs)) for signs in self.signs)
        return overwritten(drawn_bits(self.name, self.size_bytes), rows)

    def _row(self, signs: Signs) -> bytes:
        size_bytes = self.shape[-1] * WIDTHS[self.dtype]
        ones = (1 << self.bits) - 1
        weights = enumerate(signs.positive(size_bytes * 8 // self.bits))
        return sum(ones << place * self.bits for place, each in weights if each).to_bytes(size_bytes, "little")


def drawn_bits(name: str, size_bytes: int) -> Iterator[bytearray]:
    """Random bytes of the stream ``name``, in chunks."""
    for number, start in enumerate(range(0, size_bytes, _CHUNK_ELEMENTS)):
        count = min(_CHUNK_ELEMENTS, size_bytes - start)
        yield bytearray(shake_256(f"{SEED}/{name}/bits/{number}".encode()).digest(count))


def overwritten(chunks: Iterator[bytearray], rows: tuple[tuple[int, bytes], ...]) -> Iterator[bytearray]:
    """``chunks`` with each of ``rows`` (number, bytes) put where it lies."""
    begin = 0
    for chunk in chunks:
        for number, row in rows:
            place = number * len(row) - begin
            if -len(row) < place < len(chunk):
                first, end = max(place, 0), min(place + len(row), len(chunk))
                chunk[first:end] = row[first - place : end - place]
        yield chunk
        begin += len(chunk)


# --- numbers --------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _tables(mean: float, spread: float, dtype: Dtype) -> tuple[bytes, ...]:
    """For each of 256 quantiles, the bytes of its code, a table a byte."""
    normal = NormalDist()
    codes = [code(mean + spread * normal.inv_cdf((step + 0.5) / 256), dtype) for step in range(256)]
    return tuple(bytes(each[place] for each in codes) for place in range(WIDTHS[dtype]))


@lru_cache(maxsize=4096)
def code(value: float, dtype: Dtype) -> bytes:
    """``value`` as little-endian bytes.

    In F32 rounded to bf16's eight bits, so that no engine loses anything and no last bit of a platform's logarithm
    shows.
    """
    if dtype == "F16":
        return pack("<e", value)
    if dtype == "F8_E4M3":
        return bytes((_e4m3(value),))
    if dtype in ("I32", "U32"):
        return int(value).to_bytes(4, "little", signed=dtype == "I32")
    bits = int.from_bytes(pack("<f", value), "little") + 0x8000
    whole = (bits & 0xFFFF0000).to_bytes(4, "little")
    return whole if dtype == "F32" else whole[2:]


def _e4m3(value: float) -> int:
    """The nearest number of four bits of exponent and three of fraction; no infinities, 0x7F is no number."""
    found = _e4m3_numbers()
    above = min(bisect_left(found, abs(value)), len(found) - 1)
    nearest = min((max(above - 1, 0), above), key=lambda place: abs(found[place] - abs(value)))
    return nearest | (0x80 if value < 0 else 0)


@lru_cache(maxsize=1)
def _e4m3_numbers() -> tuple[float, ...]:
    small = (fraction / 8 * 2.0**-6 for fraction in range(8))
    others = ((1 + bits % 8 / 8) * 2.0 ** (bits // 8 - 7) for bits in range(8, 0x7F))
    return (*small, *others)
