"""An export of several tasks: one body, and a folder for each head that shares its files.

    model/            the body as a base model     model.safetensors
    model/NAME/       a whole model for each task  the body's files (hard links), its head's own

The checkpoint's assets say what belongs where, in a file that the export keeps.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigft.checkpoint.assets import read_config
from bigft.checkpoint.files import sync
from bigft.checkpoint.layout import Layout, SourceTensor
from bigft.checkpoint.safetensors_out import PlannedFile, name_shards
from bigft.errors import CheckpointError

PARTS_NAME = "multitask.json"


@dataclass(frozen=True)
class Piece:
    """Tensors that make up the files of one folder."""

    name: str
    """Of the folder below the export; empty: the export itself."""
    tensors: tuple[SourceTensor, ...]
    """Under the names that they have in the files."""


def describe_parts(prefix: str, body: str, heads: Mapping[str, str]) -> dict[str, Any]:
    """Say what belongs where, for a checkpoint's assets.

    Args:
        prefix: What the names of the body's tensors begin with in a whole model.
        body: What they begin with in the checkpoint.
        heads: Name of each task -> what the names of its head's tensors begin with there.
    """
    return {"prefix": prefix, "body": body, "heads": dict(heads)}


def list_parts(folder: Path) -> list[str]:
    """List the tasks of an export or of a checkpoint's assets; of most there are none."""
    path = folder / PARTS_NAME
    return list(_read(path)["heads"]) if path.is_file() else []


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if not {"prefix", "body", "heads"} <= found.keys():
            raise ValueError("not what bigft writes")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; use another checkpoint") from error
    parts: dict[str, Any] = found
    return parts


def split_tensors(layout: Layout, assets: Path | None) -> list[Piece]:
    """Sort the tensors of a checkpoint by the folder that they go to, the body first.

    Raises:
        CheckpointError: A tensor belongs nowhere.
    """
    if assets is None or not (assets / PARTS_NAME).is_file():
        return [Piece("", tuple(_with_ties(layout, assets)))]
    parts = _read(assets / PARTS_NAME)
    left = {one.name for one in layout.tensors}
    pieces = []
    for name, begin in {"": parts["body"], **parts["heads"]}.items():
        own = [one for one in _with_ties(layout, assets / name) if one.name.startswith(begin)]
        left -= {one.name for one in own}
        prefix = parts["prefix"] if name == "" else ""
        renamed = (replace(one, name=prefix + one.name.removeprefix(begin)) for one in own)
        pieces.append(Piece(name, tuple(renamed)))
    if left:
        raise CheckpointError(
            f"{assets / PARTS_NAME}: names no place for {len(left)} tensors, such as"
            f" {min(left)}; files of different runs are mixed"
        )
    return pieces


def _with_ties(layout: Layout, assets: Path | None) -> Iterator[SourceTensor]:
    """Ties are written once, unless the configuration says that nothing is tied."""
    yield from layout.tensors
    config = read_config(assets) if assets else {}
    if config.get("tie_word_embeddings") is False:
        # Then transformers would fill the missing names with random values.
        kept = {one.name: one for one in layout.tensors}
        yield from (replace(kept[to], name=name) for name, to in layout.aliases.items())


def share_files(
    body: Sequence[PlannedFile], head: Sequence[PlannedFile]
) -> tuple[list[PlannedFile], list[PlannedFile]]:
    """Name the files of a folder that has those of the body and those of a head.

    Returns:
        The body's, then the head's.
    """
    names = name_shards(len(body) + len(head))
    renamed = [replace(file, name=name) for file, name in zip([*body, *head], names, strict=True)]
    return renamed[: len(body)], renamed[len(body) :]


def link(source: Path, target: Path) -> None:
    """Give a finished file a second name; a copy where the disk cannot."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
    sync(target)
