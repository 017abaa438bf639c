"""The weights on disk against the model in memory: names, shapes, values.

transformers assumes perfectly matching files under ZeRO-3: unexpected and mismatched weights are
not reported there. Here they are, before anything is loaded, and after loading a few tensors per
layer are compared with the files value by value.
"""

import contextlib
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bigft.errors import CheckpointError
from bigft.files.safetensors_header import read_header
from bigft.files.torch_file import read_torch_file

_SHOWN = 8
_PICKLES = (".bin", ".pt", ".pth")
# The pickled number 0x1950A86A20F9469CFC6C, with which torch began its files before 1.6.
_LEGACY_BEGIN = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

# transformers' conversions after which there are as many numbers as before.
_COUNT_KEEPING = {
    "MergeModulelist",
    "SplitModulelist",
    "Concatenate",
    "Chunk",
    "Split",
    "Transpose",
}


class _Gathers(Protocol):
    def gathered(
        self, parameters: Iterable[nn.Parameter], *, modifier_rank: int | None = None
    ) -> contextlib.AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Header:
    """One tensor of a safetensors file."""

    file: Path
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NewHead:
    """Weights outside the base model that files and architecture do not share."""

    missing: tuple[str, ...] = ()
    """Of the architecture; they start from random numbers."""
    unexpected: tuple[str, ...] = ()
    """In the files, and without a place."""
    replaced: tuple[str, ...] = ()
    """In the files, but of another shape; they start from random numbers, too."""

    def describe(self) -> list[str]:
        """Say what becomes of them, in notes for people."""
        new = [*self.missing, *self.replaced]
        return [
            *([f"new, from random weights: {_list(new)}"] if new else []),
            *([f"in the files, and left out: {_list(self.unexpected)}"] if self.unexpected else []),
        ]


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """Read names and shapes from safetensors headers; other formats give nothing.

    Raises:
        CheckpointError: A file is truncated or not a safetensors file.
    """
    headers: dict[str, Header] = {}
    for file in files:
        if file.suffix != ".safetensors":
            continue
        for name, place in read_header(file).tensors.items():
            headers[name] = Header(file, place.shape)
    return headers


def check_pickles(files: Iterable[Path]) -> None:
    """Read the structure of weight files that are pickles, without carrying out what they say.

    torch refuses hostile ones too, but not those that only exhaust memory, and with words that
    advise to trust them. Its format of 0.1.10 to 1.5 is left to it.

    Raises:
        CheckpointError: A file is damaged or asks for something that weights have no reason to.
    """
    for file in files:
        if file.suffix not in _PICKLES:
            continue
        if zipfile.is_zipfile(file):
            read_torch_file(file)
            continue
        with file.open("rb") as stream:
            begin = stream.read(len(_LEGACY_BEGIN))
        if begin != _LEGACY_BEGIN:
            raise CheckpointError(
                f"{file}: damaged, or no file of torch.save since 0.1.10; use a model in"
                " safetensors"
            )


def check_names(
    skeleton: nn.Module, headers: dict[str, Header], source: str, *, has_new_head: bool = False
) -> NewHead:
    """Compare the files' names and shapes with the architecture's.

    Args:
        skeleton: The model, built without storage.
        headers: From `read_headers`.
        source: The model's name, for the message.
        has_new_head: Whether the layers outside the base model may be missing, unexpected or of
            another shape: a head for another task.

    Returns:
        What was found of such layers; nothing without `has_new_head`.

    Raises:
        CheckpointError: Names every missing, unexpected and mismatched weight (the first few of
            each kind).
    """
    expected = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    rename = _renamer(skeleton, expected)
    found: set[str] = set()
    unexpected: list[str] = []
    mismatched: dict[str, str] = {}
    converted: dict[tuple[str, ...], list[int]] = {}
    for name, header in headers.items():
        targets, is_counted = rename(name)
        if not set(targets) <= expected.keys():
            unexpected.append(name)
        elif is_counted is None and header.shape != expected[targets[0]]:
            mismatched[name] = f"{name}: file {header.shape}, model {expected[targets[0]]}"
        elif is_counted:
            converted.setdefault(targets, []).append(math.prod(header.shape))
        found.update(targets)
    for targets, counts in converted.items():
        wanted = sum(math.prod(expected[target]) for target in targets)
        if sum(counts) != wanted:
            mismatched[targets[0]] = (
                f"{targets[0]}: {sum(counts):,} numbers in {len(counts)} tensors of the files,"
                f" model {wanted:,}"
            )
    missing = _without(_find_missing(skeleton, expected.keys() - found, found), skeleton, "missing")
    unexpected = _without(unexpected, skeleton, "unexpected")
    head = NewHead()
    if has_new_head:
        of_head = partial(_is_of_head, prefix=f"{skeleton.base_model_prefix}.")
        head = NewHead(*(tuple(filter(of_head, n)) for n in (missing, unexpected, mismatched)))
        missing = [name for name in missing if not of_head(name)]
        unexpected = [name for name in unexpected if not of_head(name)]
        mismatched = {name: text for name, text in mismatched.items() if not of_head(name)}
    problems = [
        _describe("missing from the files", missing),
        _describe("in the files but not in the model", unexpected),
        _describe("of another shape", mismatched.values()),
    ]
    if any(problems):
        text = "; ".join(problem for problem in problems if problem)
        raise CheckpointError(
            f"--model {source}: the weights do not fit the architecture in config.json: {text}."
            " Check that config.json and the weights belong together"
        )
    return head


def _is_of_head(name: str, prefix: str) -> bool:
    # What is trained to guess words leaves out the layer that sums a text up.
    return not name.startswith(prefix) or ".pooler." in name


def _describe(kind: str, names: Iterable[str]) -> str:
    listed = list(names)
    return f"{len(listed)} {kind} ({_list(listed)})" if listed else ""


def _list(names: Iterable[str]) -> str:
    listed = sorted(names)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{', '.join(listed[:_SHOWN])}{rest}"


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


def _find_missing(module: nn.Module, absent: set[str], found: set[str]) -> set[str]:
    """Leave out tied names of which another one is in the files."""
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    partners: dict[str, set[str]] = {}
    for one, other in tied.items():
        joined = partners.get(one, {one}) | partners.get(other, {other})
        partners.update(dict.fromkeys(joined, joined))
    return {name for name in absent if not partners.get(name, set()) & found}


def _renamer(
    skeleton: nn.Module, expected: dict[str, Any]
) -> Callable[[str], tuple[tuple[str, ...], bool | None]]:
    """Map a name in the files to those in the model, as transformers' loader does.

    The mapping also tells what becomes of the tensor: None if it stays as it is; else whether
    its conversion keeps the count of numbers, as merging experts into one tensor does.
    """
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

    def rename(name: str) -> tuple[tuple[str, ...], bool | None]:
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if pattern is None:
            return (target,), None
        for converter in converters:
            first, *others = converter.target_patterns
            if pattern in converter.source_patterns and first in target:
                operations = {type(operation).__name__ for operation in converter.operations}
                # One tensor may become several: the name comes with the first of them, and with
                # a star where it is a list.
                names = (target, *(target.replace(first, other) for other in others))
                targets = tuple(found for each in names for found in _expand(each, expected))
                return targets, operations <= _COUNT_KEEPING
        return (target,), False

    return rename


def rename_all(skeleton: nn.Module, headers: Mapping[str, Header]) -> dict[str, str]:
    """Find where the files keep the weights of a model: name -> name in the files.

    Those that transformers converts when it loads them are left out.
    """
    rename = _renamer(skeleton, dict.fromkeys(skeleton.state_dict()))
    found = {}
    for name in headers:
        targets, is_counted = rename(name)
        if is_counted is None:
            found[targets[0]] = name
    return found


def read_tensor(header: Header, name: str) -> Tensor:
    """Read one tensor of a file."""
    from safetensors import safe_open

    with safe_open(header.file, framework="pt") as file:
        found: Tensor = file.get_tensor(name)
    return found


def _expand(name: str, expected: Iterable[str]) -> list[str]:
    if "*" not in name:
        return [name]
    pattern = re.compile(re.escape(name).replace(r"\*", r"\d+"))
    return [other for other in expected if pattern.fullmatch(other)] or [name]


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
            # Bytes, not numbers: NaN differs from itself, and is no fault of the loader.
            same = torch.equal(_as_bytes(parameter.detach().cpu()), _as_bytes(wanted))
        compared += 1
        if not same:
            raise CheckpointError(
                f"--model {source}: {name} in memory differs from {headers[name].file.name} after"
                " loading; this is a fault of the loader: please report the model and versions"
            )
    return compared


def _as_bytes(value: Tensor) -> Tensor:
    return value.contiguous().view(-1).view(torch.uint8)


def _pick_per_layer(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    chosen: dict[tuple[str, bool], tuple[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        numbers = re.match(r".*?\.\d+(?=\.)", name)
        layer = numbers[0] if numbers else name
        chosen.setdefault((layer, len(shape) > 1), (name, parameter))
    return list(chosen.values())
