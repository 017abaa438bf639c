"""The weights on disk against the model in memory: names, shapes, values.

transformers assumes perfectly matching files under ZeRO-3: unexpected and mismatched weights are
not reported there. Here they are, before anything is loaded, and after loading a few tensors per
layer are compared with the files value by value.
"""

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bigft.errors import CheckpointError

_SHOWN = 8
_HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000


class _Gathers(Protocol):
    def gathered(
        self, parameters: Iterable[nn.Parameter], *, modifier_rank: int | None = None
    ) -> contextlib.AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Header:
    """One tensor of a safetensors file."""

    file: Path
    shape: tuple[int, ...]


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """Read names and shapes from safetensors headers; other formats give nothing.

    Raises:
        CheckpointError: A file is truncated or not a safetensors file.
    """
    headers: dict[str, Header] = {}
    for file in files:
        if file.suffix != ".safetensors":
            continue
        for name, entry in _read_header(file).items():
            if name != "__metadata__":
                headers[name] = Header(file, tuple(entry["shape"]))
    return headers


def _read_header(file: Path) -> dict[str, Any]:
    damaged = f"{file}: not a complete safetensors file; download or copy it again"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        if length > min(size, _MAX_HEADER_BYTES):
            raise CheckpointError(damaged)
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(damaged) from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if size != _HEADER_LENGTH_BYTES + length + max(ends, default=0):
        raise CheckpointError(damaged)
    return header


def check_names(skeleton: nn.Module, headers: dict[str, Header], source: str) -> None:
    """Compare the files' names and shapes with the architecture's.

    Args:
        skeleton: The model, built without storage.
        headers: From `read_headers`.
        source: The model's name, for the message.

    Raises:
        CheckpointError: Names every missing, unexpected and mismatched weight (the first few of
            each kind).
    """
    expected = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    rename, is_converted = _renamer(skeleton, expected)
    found: dict[str, tuple[int, ...] | None] = {}
    unexpected, mismatched = [], []
    for name, header in headers.items():
        target = rename(name)
        converted = is_converted(name)
        if target not in expected:
            unexpected.append(name)
        elif not converted and header.shape != expected[target]:
            mismatched.append(f"{name}: file {header.shape}, model {expected[target]}")
        found[target] = None if converted else header.shape
    missing = set(expected) - set(found) - set(_tied_names(skeleton))
    if any(shape is None for shape in found.values()):
        # A conversion may split one tensor into several; transformers reports those itself.
        missing = set()
    problems = [
        _describe("missing from the files", _without(missing, skeleton, "missing")),
        _describe(
            "in the files but not in the model", _without(unexpected, skeleton, "unexpected")
        ),
        _describe("of another shape", mismatched),
    ]
    if any(problems):
        text = "; ".join(problem for problem in problems if problem)
        raise CheckpointError(
            f"--model {source}: the weights do not fit the architecture in config.json: {text}."
            " Check that config.json and the weights belong together"
        )


def _describe(kind: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{len(listed)} {kind} ({', '.join(listed[:_SHOWN])}{rest})"


def _without(names: Iterable[str], module: nn.Module, kind: str) -> list[str]:
    patterns = set(getattr(module, f"_keys_to_ignore_on_load_{kind}", None) or ())
    if kind == "unexpected":
        # Buffers that older files carry and newer models compute.
        patterns |= {
            r"rotary_emb\.inv_freq$",
            r"(^|\.)position_ids$",
            r"(^|\.)attn\.(masked_)?bias$",
        }
    return [name for name in names if not any(re.search(p, name) for p in patterns)]


def _tied_names(module: nn.Module) -> set[str]:
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    return set(tied) | set(tied.values())


def _renamer(skeleton: nn.Module, expected: dict[str, Any]) -> tuple[Any, Any]:
    """Map a name in the files to one in the model, as transformers' loader does."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(skeleton)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = getattr(skeleton, "base_model_prefix", None)

    def rename(name: str) -> str:
        renamed: str = rename_source_key(name, renamings, converters, prefix, expected)[0]
        return renamed

    def is_converted(name: str) -> bool:
        return rename_source_key(name, renamings, converters, prefix, expected)[1] is not None

    return rename, is_converted


def check_values(module: nn.Module, headers: dict[str, Header], zero: _Gathers, source: str) -> int:
    """Compare two tensors of each layer (a matrix and a vector) with the files, element by element.

    Returns:
        How many tensors were compared on this rank.

    Raises:
        CheckpointError: A loaded tensor differs from its file.

    Collective: every rank.
    Memory: one full parameter at a time.
    """
    from safetensors import safe_open

    compared = 0
    for name, parameter in _pick_per_layer(module):
        if name not in headers:
            continue
        with zero.gathered([parameter]):
            with safe_open(headers[name].file, framework="pt") as file:
                wanted = file.get_tensor(name).to(parameter.dtype)
            same = torch.equal(parameter.detach().cpu(), wanted)
        compared += 1
        if not same:
            raise CheckpointError(
                f"--model {source}: {name} in memory differs from {headers[name].file.name} after"
                " loading; this is a fault of the loader: please report the model and versions"
            )
    return compared


def _pick_per_layer(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    chosen: dict[tuple[str, bool], tuple[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        numbers = re.match(r".*?\.\d+(?=\.)", name)
        layer = numbers[0] if numbers else name
        chosen.setdefault((layer, len(shape) > 1), (name, parameter))
    return list(chosen.values())
