"""Weights of linear layers in 8 or 4 bits, as compressed-tensors writes and vLLM reads them.

Only weights: activations stay in the model's own format, so nothing has to be calibrated and what
the model computes is what it would compute with the rounded weights.
"""

from importlib.metadata import version
from typing import Any

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn

GROUP_SIZES = (128, 64, 32)
"""Weights with one scale in int4; the sizes that servers have kernels for."""

_FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int4": {"num_bits": 4, "type": "int", "strategy": "group"},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
}


def find_group_size(inputs: set[int]) -> int | None:
    """Find the largest group that fits whole into the rows of every layer."""
    sizes = (size for size in GROUP_SIZES if all(count % size == 0 for count in inputs))
    return next(sizes, None)


class Quantizer:
    """Rounds matrices, and describes how."""

    def __init__(self, kind: str, inputs: set[int], kept: list[str]) -> None:
        """Choose the scheme.

        Args:
            kind: `int8` and `fp8` have one scale per output, `int4` one per group of inputs.
            inputs: Numbers of inputs of the layers that will be rounded.
            kept: Names of the linear layers that will not be.
        """
        values = dict(_FORMATS[kind])
        if values["strategy"] == "group":
            values["group_size"] = find_group_size(inputs)
        self._args = QuantizationArgs(symmetric=True, dynamic=False, **values)
        self._scheme = QuantizationScheme(targets=["Linear"], weights=self._args)
        self._scheme.format = infer_module_format(nn.Linear, self._scheme)
        self._compressor = BaseCompressor.get_value_from_registry(self._scheme.format.value)
        self._kept = kept

    def round(self, weight: Tensor) -> dict[str, Tensor]:
        """Round a matrix `(outputs, inputs)` to the nearest values of its own scales.

        Returns:
            What is stored instead of `weight`, by the names that compressed-tensors gives it.

        Memory: three times the matrix.
        """
        size = self._args.group_size
        groups = weight.unflatten(1, (-1, size)) if size else weight
        scale, zero = calculate_qparams(
            groups.amin(-1, keepdim=not size), groups.amax(-1, keepdim=not size), self._args
        )
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        return {
            name: value.contiguous()
            for name, value in self._compressor.compress(state, self._scheme).items()
        }

    def restore(self, stored: dict[str, Tensor]) -> Tensor:
        """Return the rounded matrix as numbers, as a reader does."""
        weight: Tensor = self._compressor.decompress(stored, self._scheme)["weight"]
        return weight

    def describe(self) -> dict[str, Any]:
        """Return the `quantization_config` of config.json."""
        config = QuantizationConfig(
            config_groups={"group_0": self._scheme},
            ignore=self._kept,
            format=self._scheme.format.value,
            quantization_status=QuantizationStatus.COMPRESSED,
        )
        described: dict[str, Any] = config.model_dump(mode="json")
        return {**described, "version": version("compressed-tensors")}
