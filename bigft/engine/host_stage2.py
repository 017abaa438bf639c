"""ZeRO stages 1 and 2 with their optimizer in host memory, without fp32 copies of weights.

DeepSpeed keeps an fp32 copy of this rank's weights and gradients there, a bf16 buffer to round the
weights into, and for sums of several micro-steps an fp32 buffer on the device; it passes over
gradients once more to unscale them and over weights to round them. Here the optimizer works on bf16
weights, and on gradients that are summed up where it reads them, in the format of the sum. In host
memory the weights are the model's own; of those on a device a bf16 copy is kept.

Held against DeepSpeed 0.19.8, whose private names are used in this file alone;
`tests/unit/engine/test_host_zero.py` fails where another version has changed them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer, GradPartitionBufferGroup
from deepspeed.runtime.zero.utils import get_norm_dtype
from torch import Tensor

from bigft.optim.host import Region

_NORM_PIECE = 1 << 22


class HostZeroStage2(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """Stages 1 and 2 over a `HostAdamW`."""

    def _configure_master_weights(self, **choices: Any) -> torch.dtype:
        super()._configure_master_weights(**choices)
        # What weights are converted to: their own format.
        dtype: torch.dtype = self.optimizer.param_groups[0]["params"][0].dtype
        return dtype

    def initialize_optimizer_states(self) -> None:
        """Lay out weights and gradients, and let go of the buffers that are not needed."""
        self.temp_grad_buffer_for_cpu_offload = self.temp_grad_buffer_for_gpu_offload = None
        self._gradients: list[Tensor] = []
        self._pieces: dict[int, Tensor] = {}
        """The gradient of each parameter that has elements here, by the parameter's number."""
        self._norms: dict[int, Tensor | None] = {}
        """Norms of those that this step has a gradient for, by address; known at its end."""
        for number, group in enumerate(self.optimizer.param_groups):
            flat = self._make_flat(number)
            self.single_partition_of_fp32_groups[number] = flat
            # Weights are rounded into it, which is done.
            self.param_buffer_of_bit16_for_cpu_offload_groups[number] = flat
            group["params"] = [flat]
            state = self.optimizer.lay_out(flat, list(self._find_regions(number)))
            state.gradient = self._make_gradient(number)
            self._gradients.append(state.gradient)

    def _make_flat(self, number: int) -> Tensor:
        """The weights themselves where they are in host memory, else a copy of them there."""
        rank = torch.distributed.get_rank(group=self.real_dp_process_group[number])
        own = self.parallel_partitioned_bit16_groups[number][rank].data
        if own.device.type != "cpu":
            own = self.single_partition_of_fp32_groups[number].data
        flat: Tensor = own.view(own.shape)
        flat.requires_grad = True
        return flat

    def _find_regions(self, number: int) -> Iterator[Region]:
        is_8bit = self.optimizer.param_groups[number]["moment_bits"] == 8
        for parameter in self.params_in_partition[number]:
            _, start, offset, numel = self.grad_position[self.get_param_id(parameter)]
            if numel > 0:
                is_coded = is_8bit and parameter.dim() > 1
                yield Region(self.param_names[parameter], start, numel, offset, is_coded)

    def _make_gradient(self, number: int) -> Tensor:
        is_sum = self._use_compact_grad_partition_buffer(number)
        dtype = torch.float32 if is_sum else self.dtype
        gradient = torch.empty(int(self.partition_size[number]), dtype=dtype)
        if self.cpu_offload_pin_memory:
            gradient = get_accelerator().pin_memory(gradient)
        for parameter in self.params_in_partition[number]:
            key = self.get_param_id(parameter)
            _, _, offset, numel = self.grad_position[key]
            self._pieces[key] = gradient.narrow(0, offset, numel)
        return gradient

    def _get_offload_gradient_dict(self) -> None:
        for number, parameters in enumerate(self.params_in_partition):
            pieces = [self._pieces[self.get_param_id(parameter)] for parameter in parameters]
            self.offload_gradient_dict[number] = pieces

    def _build_compact_grad_partition_buffer(self, group_idx: int) -> Any:
        gradient = self._gradients[group_idx]
        return GradPartitionBufferGroup([gradient], gradient)

    def _add_to_grad_partition_buffer(self, output: Tensor | None, source: Tensor) -> None:
        if output is None:
            return
        key = output.data_ptr()
        # What comes first takes the place of the last step's.
        is_first = key not in self._norms
        total = source.to(output.dtype)
        if total.device == output.device:
            total = output.copy_(total) if is_first else output.add_(total)
        else:
            if not is_first:
                self._wait_for_copies()
                total = output.to(total.device, non_blocking=True).add_(total)
            output.copy_(total, non_blocking=True)
            self._record_gradient_stream(source, get_accelerator().current_stream())
            self._record_offload_copy()
        is_last = self.is_gradient_accumulation_boundary()
        self._norms[key] = _measure_norm(total) if is_last else None

    def _wait_for_copies(self) -> None:
        """Read nothing from host memory that is still being written."""
        if not self.cpu_offload_pin_memory:
            self._wait_for_offload_copies()
            return
        stream = get_accelerator().current_stream()
        for event in self._pending_offload_events.values():
            stream.wait_event(event)

    def copy_grads_in_partition(self, param: Any, group_idx: int | None = None) -> None:
        """Add a gradient, unless the reduction has; at the end of a step keep its norm."""
        key = self.get_param_id(param)
        piece = self._pieces[key]
        group, start, _, numel = self.grad_position[key]
        if not self._use_compact_grad_partition_buffer(group):
            gradient = self.get_param_gradient_attribute(param).view(-1)
            self._add_to_grad_partition_buffer(piece, gradient.narrow(0, start, numel))
        if self.is_gradient_accumulation_boundary():
            self.norm_for_param_grads[key] = self._norms[piece.data_ptr()]
            self.clear_grad_attribute(param)

    def unscale_and_clip_grads(self, grad_groups_flat: Any, total_norm: Any) -> None:
        """Find the factor; the native step applies it."""
        self.optimizer.set_scale(float(self.loss_scale), total_norm, self.clip_grad)

    def _optimizer_step(self, group_no: int) -> None:
        for parameter in self.params_in_partition[group_no]:
            piece = self._pieces[self.get_param_id(parameter)]
            if piece.data_ptr() not in self._norms:
                piece.zero_()  # Without a part in this step's loss.
        super()._optimizer_step(group_no)

    def _lazy_init_hp_params_optimizer_state(self) -> None:
        """Do nothing: the moments are not in the optimizer's `state`."""

    def reset_cpu_buffers(self) -> None:
        """Begin the next step, with or without this one's gradients taken."""
        super().reset_cpu_buffers()
        self._norms.clear()


def _measure_norm(values: Tensor) -> Tensor:
    """As DeepSpeed does, but without a copy of everything in a wider format."""
    pieces = values.reshape(-1).split(_NORM_PIECE)
    norm: Tensor = torch.stack([piece.to(get_norm_dtype()).norm() for piece in pieces]).norm()
    return norm
