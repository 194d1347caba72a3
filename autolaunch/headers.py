"""Headers of weight files against the files themselves: bounded, and nothing read but the header.

What a header promises must be there to the last byte, or an engine loads for minutes and then fails, or serves noise.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO

from selector.errors import DownloadError

HEADER_BYTES = 100 * 2**20
#: Bits of a number of each kind that safetensors has.
BITS = {
    kind: bits
    for bits, kinds in (
        (4, "F4"),
        (8, "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0"),
        (16, "U16 I16 F16 BF16"),
        (32, "U32 I32 F32"),
        (64, "U64 I64 F64 C64"),
    )
    for kind in kinds.split()
}

#: Values of a GGUF block and its bytes, by ggml's number of the type (gguf-py's GGML_QUANT_SIZES, build 11434).
GGUF_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
    42: (64, 18),
}
#: Bytes of a GGUF value by its type; 8 is a string, 9 an array.
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_TENSORS, _MOST_VALUES, _MOST_NESTING = 1 << 20, 1 << 16, 4


def regular(path: Path) -> BinaryIO:
    """Opens a file that is one: a pipe of that name would be waited for without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DownloadError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")


def whole_safetensors(path: Path) -> frozenset[str]:
    """The header's length, bounded; each tensor's place against its shape and the next; the end against the file.

    Returns the tensors' names.

    Raises:
        DownloadError: what is wrong, with the file's name.
    """
    try:
        with regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or header_bytes > min(HEADER_BYTES, size_bytes - 8):
                raise DownloadError(f"{path} is damaged or cut short: its header does not fit into it")
            header = json.loads(file.read(header_bytes))
        spans = sorted(_span(name, tensor) for name, tensor in header.items() if name != "__metadata__")
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DownloadError(f"{path} is damaged: its header is no safetensors header") from error
    end = 0
    for begins, ends, name in spans:
        if begins != end:
            raise DownloadError(f"{path} is damaged: {name!r} does not begin where the tensor before it ends")
        end = ends
    expected_bytes = 8 + header_bytes + end
    if expected_bytes != size_bytes:
        raise DownloadError(
            f"{path} is {size_bytes} bytes long, its header says {expected_bytes}", hint="fetch this file again"
        )
    return frozenset(name for _, _, name in spans)


def _span(name: str, tensor: dict[str, Any]) -> tuple[int, int, str]:
    """Where a tensor begins and ends.

    Raises:
        ValueError: it is not as long as its shape says. (A kind of number that is not known here may be any length.)
    """
    begins, ends = tensor["data_offsets"]
    shape = tensor["shape"]
    if not all(type(number) is int and number >= 0 for number in (begins, ends, *shape)) or ends < begins:
        raise ValueError(name)
    bits = BITS.get(tensor["dtype"])
    if bits is not None and math.prod(shape) * bits != (ends - begins) * 8:
        raise ValueError(name)
    return begins, ends, name


def whole_gguf(path: Path) -> None:
    """The counts, bounded; each tensor's place against its shape; the end against the file.

    Raises:
        DownloadError: what is wrong, with the file's name.
    """
    try:
        with regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < 24:
                raise DownloadError(f"{path} is damaged or cut short: its header does not fit into it")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                expected_bytes = _Gguf(data).expected_bytes()
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, struct.error, IndexError) as error:
        raise DownloadError(
            f"{path} is damaged or cut short: its header is no GGUF header", hint="fetch this file again"
        ) from error
    if expected_bytes > size_bytes:
        raise DownloadError(
            f"{path} is {size_bytes} bytes long, its header says {expected_bytes}", hint="fetch this file again"
        )


class _Gguf:
    """A walk over a GGUF header. Whatever leads beyond the file is an error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0

    def number(self, form: str) -> int:
        value: int
        (value,) = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return value

    def skip(self, count: int) -> None:
        self.place += count
        if self.place > min(len(self.data), HEADER_BYTES):
            raise ValueError("beyond the header")

    def string(self) -> bytes:
        length = self.number("<Q")
        start = self.place
        self.skip(length)
        return self.data[start : start + min(length, 256)]

    def value(self, kind: int, depth: int = 0) -> int | None:
        """Passes over a value; gives a whole number of four bytes, which the alignment is."""
        if kind in _GGUF_SIZES:
            start = self.place
            self.skip(_GGUF_SIZES[kind])
            return int(struct.unpack_from("<I", self.data, start)[0]) if kind == 4 else None
        if kind == _STRING:
            self.skip(self.number("<Q"))
            return None
        if kind != _ARRAY or depth == _MOST_NESTING:
            raise ValueError("an unknown kind of value")
        of, count = self.number("<I"), self.number("<Q")
        if of in _GGUF_SIZES:
            self.skip(_GGUF_SIZES[of] * count)
            return None
        if count > len(self.data):
            raise ValueError("more values than bytes")
        for _ in range(count):
            self.value(of, depth + 1)
        return None

    def expected_bytes(self) -> int:
        """How long the file has to be. A type of tensor that is not known here may be any length."""
        if self.data[:4] != b"GGUF":
            raise ValueError("no GGUF file")
        self.place = 4
        version, tensors, values = self.number("<I"), self.number("<Q"), self.number("<Q")
        if not 2 <= version <= 3 or tensors > _MOST_TENSORS or values > _MOST_VALUES:
            raise ValueError("counts")
        alignment = 32
        for _ in range(values):
            key = self.string()
            found = self.value(self.number("<I"))
            if key == b"general.alignment" and found is not None:
                alignment = found
        if not alignment or alignment & (alignment - 1):
            raise ValueError("alignment")
        end = 0
        for _ in range(tensors):
            self.string()
            sides = self.number("<I")
            if sides > 8:
                raise ValueError("sides")
            shape = [self.number("<Q") for _ in range(sides)]
            kind, offset = self.number("<I"), self.number("<Q")
            values_of_block, bytes_of_block = GGUF_BLOCKS.get(kind, (1, 0))
            elements = math.prod(shape)
            if offset % alignment or (shape and shape[0] % values_of_block):
                raise ValueError("a tensor's place")
            end = max(end, offset + elements // values_of_block * bytes_of_block)
        return (self.place + alignment - 1) // alignment * alignment + end
