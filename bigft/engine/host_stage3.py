"""ZeRO stage 3 with its optimizer in host memory, without fp32 copies of weights and gradients.

DeepSpeed keeps an fp32 copy of every weight and of every gradient beside the bf16 ones, and passes
over them once more to unscale gradients and to round weights. Here the optimizer works on the bf16
weights and on the bf16 gradients where they lie; what makes a weight an fp32 number is the
optimizer's own.

Held against DeepSpeed 0.19.8, whose private names are used in this file alone;
`tests/unit/engine/test_host_stage3.py` fails where another version has changed them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

# Derives from stock stage 3 when it is imported, which `initialize` does.
from deepspeed.runtime.superoffload import superoffload_stage3  # noqa: F401
from deepspeed.runtime.zero import stage3
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from bigft.optim.host import HostAdamW, Region

_NORM_PIECE = 1 << 22


class HostZeroStage3(DeepSpeedZeroOptimizer_Stage3):  # type: ignore[misc]
    """Stage 3 over a `HostAdamW`."""

    def _create_fp32_partitions(self) -> None:
        self.subgroup_to_device = dict.fromkeys(range(len(self.fp16_groups)), "cpu")
        # What gradients are converted to: their own format.
        self.master_weights_and_grads_dtype = self.dtype
        for number, weights in enumerate(self.fp16_partitioned_groups_flat):
            flat: Any = self._make_flat(weights)
            ids = self.fp16_partitioned_groups_flat_id[number]
            flat.ds_id = f"{ids[0]}_{ids[-1]}"
            self.fp32_partitioned_groups_flat.append(flat)
            self.optimizer.lay_out(flat, list(self._find_regions(number)))
        for group in self.optimizer.param_groups:
            group["params"] = []

    def _make_flat(self, weights: Tensor) -> Tensor:
        """The weights themselves where they are in host memory, else a copy of them there."""
        own = weights.data
        if own.device.type != "cpu":
            own = own.cpu().pin_memory() if self.offload_optimizer_pin_memory else own.cpu()
        flat = own.view(own.shape)
        flat.requires_grad = True
        return flat

    def _find_regions(self, number: int) -> Iterator[Region]:
        group = self.optimizer.param_groups[self.sub_group_to_group_id[number]]
        is_8bit = group["moment_bits"] == 8
        offset = 0
        for parameter in self.fp16_groups[number]:
            size = int(parameter.partition_numel())
            start = size * self._get_param_partition_rank(parameter)
            numel = min(size, int(parameter.ds_numel) - start)
            if numel > 0:
                name = self.param_names[parameter]
                is_coded = is_8bit and len(parameter.ds_shape) > 1
                yield Region(name, start, numel, offset, is_coded)
            offset += size

    def initialize_optimizer_states(self) -> None:
        """Do nothing: there are no fp32 gradients, and the states are there."""

    def _setup_for_real_optimizer(self) -> None:
        super()._setup_for_real_optimizer()
        offset = 0
        for flat in self.fp32_partitioned_groups_flat:
            gradient = self.grad_partitions_flat_buffer.narrow(0, offset, flat.numel())
            for state in self.optimizer.find(flat):
                state.gradient = gradient
            offset += flat.numel()

    def _offload_grad_partition_at_boundary(self, param: Any, grad_buffer: Tensor, *_: Any) -> None:
        # The gradient stays where it is.
        norm = self._constant_buffered_norm2(grad_buffer, _NORM_PIECE)
        self.norm_for_param_grads[self.get_param_id(param)] = norm

    def unscale_and_clip_grads(self, sub_group_id: int, total_norm: Any) -> None:
        """Find the factor; the native step applies it."""
        scale = float(self.loss_scale)
        if self.clip_grad > 0.0:
            norm = float(total_norm) / scale
            scale *= max(1.0, (norm + 1e-6) / self.clip_grad)
        self.optimizer.scale = 1.0 / scale

    def _optimizer_step(self, sub_group_id: int) -> None:
        flat = self.fp32_partitioned_groups_flat[sub_group_id]
        group = self.optimizer.param_groups[self.sub_group_to_group_id[sub_group_id]]
        group["params"] = [flat]
        self.optimizer.step()
        group["params"] = []

    def _reassign_or_swap_out_partitioned_parameters(self, sub_group_id: int) -> None:
        low = self.fp16_partitioned_groups_flat[sub_group_id]
        flat = self.fp32_partitioned_groups_flat[sub_group_id]
        if low.data_ptr() != flat.data_ptr():
            low.data.copy_(flat.data)


@contextlib.contextmanager
def host_stage3() -> Iterator[None]:
    """Let `deepspeed.initialize` use this stage 3 inside the block for a `HostAdamW`."""
    stock = stage3.DeepSpeedZeroOptimizer_Stage3

    def choose(module: Any, optimizer: Any, *args: Any, **named: Any) -> Any:
        chosen = HostZeroStage3 if isinstance(optimizer, HostAdamW) else stock
        return chosen(module, optimizer, *args, **named)

    stage3.DeepSpeedZeroOptimizer_Stage3 = choose
    try:
        yield
    finally:
        stage3.DeepSpeedZeroOptimizer_Stage3 = stock
