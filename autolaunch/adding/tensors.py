"""The headers of a repository's safetensors files: every tensor with its kind and shape. No weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import msgspec
from msgspec import Meta

from autolaunch.adding.sources import File, Source
from autolaunch.headers import BITS
from selector.errors import DownloadError
from selector.values import readable

#: The longest header of one file. The largest that are published, of hundreds of experts a shard, are below a megabyte.
HEADER_BYTES = 8 << 20
#: Of all files together.
ALL_BYTES, MOST_FILES, MOST_TENSORS = 256 << 20, 2048, 1 << 20
#: Most headers come whole with their length.
_FIRST_BYTES = 128 << 10
_AT_ONCE = 8
_Count = Annotated[int, Meta(ge=0, le=1 << 50)]


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a header. ``data_offsets`` count from the header's end."""

    dtype: Annotated[str, Meta(max_length=32)]
    shape: Annotated[tuple[_Count, ...], Meta(max_length=8)]
    data_offsets: tuple[_Count, _Count]

    @property
    def size_bytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def tensors_of(source: Source, files: tuple[File, ...]) -> dict[str, Tensor]:
    """All tensors of the files, by name.

    Raises:
        DownloadError: a header cannot be had, or is none; the message names the file.
    """
    if len(files) > MOST_FILES:
        raise DownloadError(f"{source.repo} has {len(files)} files of weights, more than {MOST_FILES}")
    found: dict[str, Tensor] = {}
    read_bytes = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(files), _AT_ONCE):
            some = files[first : first + _AT_ONCE]
            for file, (size, tensors) in zip(some, pool.map(lambda each: _header(source, each), some), strict=True):
                read_bytes += size
                twice = next((name for name in tensors if name in found), None)
                if twice is not None:
                    raise DownloadError(f"{file.path} of {source.repo} has {twice[:100]!a}, which another file has too")
                found |= tensors
                if len(found) > MOST_TENSORS or read_bytes > ALL_BYTES:
                    raise DownloadError(f"{source.repo} has more tensors than any checkpoint")
    return found


def _header(source: Source, file: File) -> tuple[int, dict[str, Tensor]]:
    """The header's length, and what it says."""
    named = f"{file.path} of {source.repo}"
    begin = source.read(file, 0, _FIRST_BYTES)
    length = int.from_bytes(begin[:8], "little")
    if len(begin) < 8 or length > file.size_bytes - 8:
        raise DownloadError(f"{named} is no safetensors file: its header does not fit into it")
    if length > HEADER_BYTES:
        raise DownloadError(f"{named}: a header of {length} bytes is longer than any that makes sense")
    content = begin[8 : 8 + length]
    if len(content) < length:
        content += source.read(file, 8 + len(content), length - len(content))
    try:
        told = msgspec.convert(json.loads(content, parse_constant=_no_number), dict[str, object])
        told.pop("__metadata__", None)
        tensors = msgspec.convert(told, readable(dict[str, Tensor]))
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise DownloadError(f"{named}: its header is no safetensors header: {str(error)[:200]}") from error
    for told_wrong in _wrong(tensors, file.size_bytes - 8 - length):
        raise DownloadError(f"{named}: {told_wrong}")
    return length, tensors


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _wrong(tensors: dict[str, Tensor], data_bytes: int) -> Iterator[str]:
    """That each begins where another ends, is as long as its shape says, and that all of them fill the file."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda each: each[1].data_offsets):
        shown = f"{name[:100]!a}"
        begins, ends = tensor.data_offsets
        if begins != end or ends < begins:
            yield f"{shown} does not begin where the tensor before it ends"
        bits = BITS.get(tensor.dtype)
        if bits is None:
            yield f"{shown} is of {tensor.dtype[:32]!a}, a kind of number that is not known"
        elif tensor.elements * bits != tensor.size_bytes * 8:
            yield f"{shown} is not as long as its shape says"
        end = ends
    if end != data_bytes:
        yield f"the file has {data_bytes} bytes of tensors, and its header says {end}"
    if not tensors:
        yield "there is no tensor in it"
