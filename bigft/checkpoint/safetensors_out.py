"""Safetensors files with preallocated space, so that chunks can be written in any order.

| header length, 8 bytes | JSON header, padded with spaces to 8 | tensors, no gaps |
"""

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigft.checkpoint.torch_file import ITEM_BYTES, count_elements
from bigft.errors import CheckpointError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

DTYPE_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Safetensors' name of each dtype."""


@dataclass(frozen=True)
class Entry:
    """One tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return count_elements(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class PlannedFile:
    """One safetensors file: its header and where each tensor begins."""

    name: str
    header: bytes
    offsets: dict[str, int]
    """Tensor name -> byte position in the file."""
    entries: tuple[Entry, ...]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(entry.num_bytes for entry in self.entries)

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.tensor_bytes


def plan_files(entries: Sequence[Entry], max_shard_bytes: int) -> tuple[PlannedFile, ...]:
    """Distribute tensors over files of at most `max_shard_bytes`, in their order.

    A larger tensor gets a file of its own, as in Hugging Face's `save_pretrained`.
    """
    shards = list(_split(entries, max_shard_bytes)) or [[]]
    if len(shards) == 1:
        return (_plan_file(SINGLE_NAME, shards[0]),)
    count = len(shards)
    return tuple(
        _plan_file(f"model-{number:05d}-of-{count:05d}.safetensors", shard)
        for number, shard in enumerate(shards, 1)
    )


def create_files(folder: Path, files: Sequence[PlannedFile]) -> None:
    """Write the headers and the index, and give every file its final length."""
    for file in files:
        with (folder / file.name).open("xb") as stream:
            stream.write(file.header)
            stream.truncate(file.file_bytes)
    if len(files) > 1:
        metadata = {"total_size": sum(file.tensor_bytes for file in files)}
        weight_map = {entry.name: file.name for file in files for entry in file.entries}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def write_chunk(descriptor: int, chunk: memoryview, offset: int) -> None:
    """Write all bytes of a chunk at a byte position of an open file."""
    while chunk:
        written = os.pwrite(descriptor, chunk, offset)
        chunk, offset = chunk[written:], offset + written


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read a safetensors header and the byte position at which its tensors begin.

    Raises:
        CheckpointError: The file is too short or its header is no JSON object.
    """
    with path.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            # A damaged length must not make us allocate: no header is longer than its file.
            header = json.loads(stream.read(min(length, path.stat().st_size)))
        except (struct.error, ValueError) as error:
            raise CheckpointError(f"{path}: the safetensors header is damaged: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is damaged: no JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _split(entries: Sequence[Entry], max_shard_bytes: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.num_bytes > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.num_bytes
    if shard:
        yield shard


def _plan_file(name: str, entries: Sequence[Entry]) -> PlannedFile:
    # Widest elements first: every tensor is then aligned to its own element size without gaps,
    # which the format does not allow.
    ordered = sorted(entries, key=lambda entry: -ITEM_BYTES[entry.dtype])
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in ordered:
        end = position + entry.num_bytes
        table[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    offsets = {entry.name: len(header) + table[entry.name]["data_offsets"][0] for entry in ordered}
    return PlannedFile(name, header, offsets, tuple(ordered))
