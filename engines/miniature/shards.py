"""The miniatures' safetensors files: two shards and their index."""

from __future__ import annotations

import json
from typing import BinaryIO

from engines.miniature.tensors import Bits, Tensor
from selector.values import Value


class Shard(Value, frozen=True, kw_only=True):
    """One safetensors file. ``made_for`` is what its metadata call the framework: MLX asks for its own."""

    file_name: str
    tensors: tuple[Tensor | Bits, ...]
    made_for: str = "pt"

    def header(self) -> bytes:
        """What comes before the data: the length of the JSON in eight bytes, the JSON, padded to eight."""
        entries: dict[str, object] = {"__metadata__": {"format": self.made_for}}
        offset = 0
        for tensor in self.tensors:
            end = offset + tensor.size_bytes
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def size_bytes(self) -> int:
        return len(self.header()) + sum(tensor.size_bytes for tensor in self.tensors)

    def write(self, file: BinaryIO) -> None:
        file.write(self.header())
        for tensor in self.tensors:
            file.writelines(tensor.data())


def shards(found: tuple[Tensor | Bits, ...], made_for: str = "pt") -> tuple[Shard, Shard]:
    """Two files of about the same size: released checkpoints are sharded, so the sharded path is proved."""
    half = sum(tensor.size_bytes for tensor in found) // 2
    filled = cut = 0
    for tensor in found[:-1]:
        if cut and filled + tensor.size_bytes > half:
            break
        filled += tensor.size_bytes
        cut += 1
    return (
        Shard(file_name="model-00001-of-00002.safetensors", tensors=found[:cut], made_for=made_for),
        Shard(file_name="model-00002-of-00002.safetensors", tensors=found[cut:], made_for=made_for),
    )


def index_json(parts: tuple[Shard, ...]) -> str:
    """``model.safetensors.index.json``: which file holds which tensor."""
    places = {tensor.name: shard.file_name for shard in parts for tensor in shard.tensors}
    total = sum(tensor.size_bytes for shard in parts for tensor in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(index, indent=2) + "\n"
