"""Safetensors files with preallocated space, so that blocks can be written in any order.

| header length, 8 bytes | JSON header, padded with spaces to 8 | tensors, no gaps |
"""

import ctypes
import errno
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigft.errors import CheckpointError
from bigft.files.torch_file import ITEM_BYTES, count_elements

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

    Raises:
        CheckpointError: A tensor has a name that the format cannot hold.
    """
    for entry in entries:
        _check_name(entry.name)
    shards = list(_split(entries, max_shard_bytes)) or [[]]
    named = zip(name_shards(len(shards)), shards, strict=True)
    return tuple(_plan_file(name, shard) for name, shard in named)


def name_shards(count: int) -> list[str]:
    """Name the files of a model as Hugging Face does."""
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def create_files(
    folder: Path, files: Sequence[PlannedFile], shared: Sequence[PlannedFile] = ()
) -> None:
    """Write the headers and the index, and give every file its final length.

    Args:
        folder: Where to.
        files: What to create.
        shared: Files that will be there, too, and belong into the index.

    Raises:
        OSError: Among others, the disk has no room for them.
    """
    for file in files:
        with (folder / file.name).open("xb") as stream:
            stream.write(file.header)
            _allocate(stream.fileno(), file.file_bytes)
    every = [*shared, *files]
    if len(every) > 1:
        metadata = {"total_size": sum(file.tensor_bytes for file in every)}
        weight_map = {entry.name: file.name for file in every for entry in file.entries}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _check_name(name: object) -> None:
    try:
        is_usable = isinstance(name, str) and bool(name.encode()) and name != "__metadata__"
    except UnicodeEncodeError:
        is_usable = False
    if not is_usable:
        raise CheckpointError(
            f"a parameter is named {name!r:.80}, which a safetensors file cannot hold; the"
            " checkpoint is damaged"
        )


def _allocate(descriptor: int, num_bytes: int) -> None:
    """Reserve a file's blocks: a full disk shows now, and direct writes need not extend it."""
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is not None and num_bytes:
        length = ctypes.c_int64(num_bytes)
        if fallocate(descriptor, 0, ctypes.c_int64(0), length) == 0:
            return
        code = ctypes.get_errno()
        # A network file system may have no such call. (Python's `posix_fallocate` would then write
        # to every block instead.)
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code))
    os.truncate(descriptor, num_bytes)


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
