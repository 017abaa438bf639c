"""The ways to make a model smaller, alike for who calls them.

Each says why it does not go with a model, writes the smaller one, and tells what it did. What they
need of torch and of other packages is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bigft.compression.prune import Pruning
from bigft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from bigft.compression.source import Source

LoadForText = Callable[[], tuple[Any, "Tensor"]]
"""Loads the model, and token ids of some text `(sequences, length)` on the same device."""


@dataclass(frozen=True)
class Done:
    """What was done to a model."""

    note: str
    """For the model card."""

    facts: dict[str, Any] = field(default_factory=dict)
    """For `--json`."""


class Method(Protocol):
    """A way to make a model smaller."""

    @property
    def flag(self) -> str:
        """As it was typed."""

    def find_missing(self) -> None:
        """Raise a ConfigError where a package or a program is missing."""

    def find_problems(self, source: Source) -> list[str]:
        """List why it does not go with this model."""

    def write(self, source: Source, folder: Path, load: LoadForText) -> Done:
        """Write the smaller model."""


@dataclass(frozen=True)
class Prune:
    """Set weights to zero; the files stay as large."""

    flag: str
    pruning: Pruning

    def find_missing(self) -> None:
        """Nothing is needed."""

    def find_problems(self, source: Source) -> list[str]:
        """List why it does not go with this model."""
        from bigft.compression.source import find_no_decoder, find_unfit

        problems = find_unfit(source, self.flag)
        if self.pruning.measure == "wanda":
            problems += find_no_decoder(source, self.flag)
        odd = [name for name, layer in source.linears.items() if layer.in_features % 4]
        if self.pruning.share is None and odd:
            problems.append(
                f"{self.flag}: {odd[0]} has {source.linears[odd[0]].in_features} inputs, no"
                " multiple of 4; give a share instead"
            )
        return problems

    def write(self, source: Source, folder: Path, load: LoadForText) -> Done:
        """Write the smaller model."""
        from bigft.compression.prune import prune_, prune_by_inputs
        from bigft.compression.write import write_rest, write_weights

        targets = {f"{name}.weight" for name in source.linears}
        pruned: Mapping[str, Tensor] = {}
        if self.pruning.measure == "wanda":
            model, rows = load()
            (stack,) = source.stacks
            blocks = list(model.get_submodule(stack))
            prune_by_inputs(model.base_model, blocks, rows, self.pruning.share)
            pruned = dict(model.named_parameters())
        zeros = weights = 0

        def change(name: str, weight: Tensor) -> dict[str, Tensor]:
            nonlocal zeros, weights
            if name not in targets:
                return {name: weight}
            if name in pruned:
                weight = pruned[name].detach().cpu()
            else:
                prune_(weight, self.pruning.share)
            zeros += int((weight == 0).sum())
            weights += weight.numel()
            return {name: weight}

        write_weights(source, folder, change)
        write_rest(source, folder, source.config, self.flag)
        share = zeros / weights
        note = (
            f"{100 * share:.1f}% of the weights of the linear layers in its blocks are zero"
            f" (`{self.flag}`). They are stored like the others: the files are no smaller, and"
            " nothing is faster without a program that makes use of zeros."
        )
        return Done(note, {"zero_share": share})


@dataclass(frozen=True)
class Quantize:
    """Store weights in fewer bits, with compressed-tensors."""

    flag: str
    kind: Literal["int8", "int4", "fp8"]

    def find_missing(self) -> None:
        """Raise a ConfigError where a package is missing."""
        _require("compressed_tensors", self.flag)

    def find_problems(self, source: Source) -> list[str]:
        """List why it does not go with this model."""
        from bigft.compression.quantize import GROUP_SIZES, find_group_size
        from bigft.compression.source import find_unfit

        problems = find_unfit(source, self.flag)
        # transformers 5.23 finds embeddings of T5 missing, and fails when it fills packed weights.
        if len(source.stacks) > 1:
            problems.append(
                f"{self.flag}: unsupported architecture {type(source.skeleton).__name__}: it has"
                f" several stacks of layers ({', '.join(source.stacks)}), and transformers cannot"
                " load the result"
            )
        inputs = _count_inputs(source)
        if self.kind == "int4" and not problems and not find_group_size(inputs):
            problems.append(
                f"{self.flag}: linear layers have {', '.join(map(str, sorted(inputs)))} inputs, and"
                f" no group of {', '.join(map(str, GROUP_SIZES))} goes into all; use --quantize"
                " int8"
            )
        return problems

    def write(self, source: Source, folder: Path, load: LoadForText) -> Done:
        """Write the smaller model."""
        from torch import nn

        from bigft.compression.quantize import Quantizer
        from bigft.compression.write import write_rest, write_weights

        targets = source.linears
        everything = source.skeleton.named_modules()
        kept = [n for n, m in everything if isinstance(m, nn.Linear) and n not in targets]
        quantizer = Quantizer(self.kind, _count_inputs(source), kept)

        def change(name: str, weight: Tensor) -> dict[str, Tensor]:
            layer, _, last = name.rpartition(".")
            if last != "weight" or layer not in targets:
                return {name: weight}
            return {f"{layer}.{key}": value for key, value in quantizer.round(weight).items()}

        write_weights(source, folder, change)
        described = quantizer.describe()
        write_rest(source, folder, {**source.config, "quantization_config": described}, self.flag)
        note = (
            f"The weights of the {len(targets)} linear layers in its blocks are stored as"
            f" {self.kind} in the format compressed-tensors {described['version']}"
            f" (`{described['format']}`); embeddings, head and norms are as they were. transformers"
            " needs `pip install compressed-tensors` to load it."
        )
        return Done(note, {"format": described["format"]})


@dataclass(frozen=True)
class DropLayers:
    """Leave whole layers out."""

    count: int

    @property
    def flag(self) -> str:
        """As it was typed."""
        return f"--drop_layers {self.count}"

    def find_missing(self) -> None:
        """Nothing is needed."""

    def find_problems(self, source: Source) -> list[str]:
        """List why it does not go with this model."""
        from bigft.compression.source import find_no_decoder

        if problems := find_no_decoder(source, self.flag):
            return problems
        ((stack, layers),) = source.stacks.items()
        if self.count >= len(layers):
            return [f"{self.flag}: the model has {len(layers)} layers; drop fewer"]
        if not any(name.startswith(f"{stack}.") for name in source.headers):
            return [f"{self.flag}: unsupported architecture: its files do not name {stack}"]
        try:
            self._cut(source, range(self.count))
        except ConfigError as error:
            return [f"{self.flag}: unsupported architecture: {error}"]
        return []

    def _cut(self, source: Source, dropped: range) -> dict[str, Any]:
        from bigft.compression.layers import cut_config

        text: Any = source.skeleton.config
        text = text.get_text_config()
        known = {**text.to_dict(), "num_hidden_layers": text.num_hidden_layers}
        return cut_config(source.config, known, dropped)

    def write(self, source: Source, folder: Path, load: LoadForText) -> Done:
        """Write the smaller model."""
        from bigft.compression.layers import measure_changes, rename
        from bigft.compression.write import write_rest, write_weights

        model, rows = load()
        (stack,) = source.stacks
        blocks = list(model.get_submodule(stack))
        angles = measure_changes(model.base_model, blocks, rows, self.count)
        first = min(range(len(angles)), key=angles.__getitem__)
        dropped = range(first, first + self.count)

        def change(name: str, weight: Tensor) -> dict[str, Tensor]:
            new = rename(name, stack, dropped)
            return {} if new is None else {new: weight}

        write_weights(source, folder, change)
        write_rest(source, folder, self._cut(source, dropped), self.flag)
        gone = ", ".join(map(str, dropped))
        note = (
            f"Without layers {gone} of {len(blocks)} (from 0), which together turned their input"
            f" least: by {angles[first]:.3f} of a half turn (arXiv 2403.17887). It is meant to be"
            " trained further, for example by distillation from the whole model."
        )
        return Done(note, {"layers_dropped": list(dropped), "angles": angles})


@dataclass(frozen=True)
class Gguf:
    """Write one GGUF file with llama.cpp's converter."""

    kind: str
    environ: Mapping[str, str]
    is_scored: bool
    """Whether transformers is to load the result; the converter itself brings what it needs."""

    @property
    def flag(self) -> str:
        """As it was typed."""
        return f"--gguf {self.kind}"

    def find_missing(self) -> None:
        """Raise a ConfigError where the converter or a package is missing."""
        from bigft.compression.gguf import find_converter

        find_converter(self.environ)
        if self.is_scored:
            _require("gguf", self.flag, extra="gguf")
            _require("accelerate", self.flag, extra="gguf")

    def find_problems(self, source: Source) -> list[str]:
        """Leave it to the converter which architectures it knows."""
        del source
        return []

    def write(self, source: Source, folder: Path, load: LoadForText) -> Done:
        """Write the smaller model."""
        from bigft.compression.gguf import FILE_NAME, convert, find_converter
        from bigft.compression.write import write_rest

        convert(find_converter(self.environ), source.folder, folder, self.kind)
        write_rest(source, folder, source.config, self.flag)
        note = (
            f"`{FILE_NAME}` is for llama.cpp and what is built on it. transformers loads it with"
            f' `from_pretrained(folder, gguf_file="{FILE_NAME}")`, as fp32.'
        )
        return Done(note, {"format": "gguf"})


def _count_inputs(source: Source) -> set[int]:
    return {layer.in_features for layer in source.linears.values()}


def _require(package: str, flag: str, extra: str = "compress") -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{flag}: the package {package.replace('_', '-')} is not installed ({error}); pip"
            f' install "bigft[{extra}]"'
        ) from error
