"""ZeRO stage 3 with its optimizer in host memory, without fp32 copies of weights and gradients.

DeepSpeed keeps an fp32 copy of every weight and of every gradient beside the bf16 ones, and passes
over them once more to unscale gradients and to round weights. Here the optimizer works on the bf16
weights and on the bf16 gradients where they lie; what makes a weight an fp32 number is the
optimizer's own. With the optimizer on NVMe that is in files of ours (`bigft.engine.host_swap`), and
DeepSpeed's swapper, which moves fp32 numbers only, is not used; gradients stay in host memory.

Held against DeepSpeed 0.19.8, whose private names are used in this file alone;
`tests/unit/engine/test_host_zero.py` fails where another version has changed them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from bigft.engine.host_swap import PIECE, FileRange, HostSwap, Weights, cut_region
from bigft.optim.host import FlatState, Region

_NORM_PIECE = 1 << 22


class HostZeroStage3(DeepSpeedZeroOptimizer_Stage3):  # type: ignore[misc]
    """Stage 3 over a `HostAdamW`."""

    swap: HostSwap | None = None
    """Where the optimizer is on NVMe."""

    def _configure_offloading(self, offload_optimizer_config: Any, *rest: Any) -> None:
        super()._configure_offloading(offload_optimizer_config, *rest)
        if self.swap_optimizer:
            self.swap_optimizer: bool = False
            rank = torch.distributed.get_rank()
            folder = Path(offload_optimizer_config.nvme_path) / f"bigft_states/rank{rank}"
            self.swap = HostSwap(folder)
            self.optimizer.opened = self.swap.opened

    def _create_fp32_partitions(self) -> None:
        self.subgroup_to_device = dict.fromkeys(range(len(self.fp16_groups)), "cpu")
        # What gradients are converted to: their own format.
        self.master_weights_and_grads_dtype = self.dtype
        for number, weights in enumerate(self.fp16_partitioned_groups_flat):
            # DeepSpeed has no flat vector of weights that are on NVMe.
            flat: Any = torch.empty(0) if weights is None else self._make_flat(weights)
            ids = self.fp16_partitioned_groups_flat_id[number]
            flat.ds_id = f"{ids[0]}_{ids[-1]}"
            self.fp32_partitioned_groups_flat.append(flat)
            if self.swap is None:
                self.optimizer.lay_out(flat, [region for region, _ in self._find_regions(number)])
            else:
                self.optimizer.lay_out_elsewhere(flat, list(self._lay_out_pieces(number, flat)))
        for group in self.optimizer.param_groups:
            group["params"] = []

    def _lay_out_pieces(self, number: int, flat: Tensor) -> Iterator[FlatState]:
        """Cut a sub-group into pieces for the swap, neighbours of one parameter together."""
        assert self.swap is not None
        bits, size = self.optimizer.rest_bits, self.dtype.itemsize
        batch: list[tuple[Region, Weights]] = []
        for region, parameter in self._find_regions(number):
            for part in cut_region(region, size):
                if batch and sum(one.numel for one, _ in batch) + part.numel > PIECE:
                    yield self._add_piece(batch, bits)
                    batch = []
                batch.append((part, self._find_weights(parameter, region, part, flat)))
        if batch:
            yield self._add_piece(batch, bits)

    def _add_piece(self, batch: list[tuple[Region, Weights]], bits: int) -> FlatState:
        assert self.swap is not None
        state = FlatState(self.dtype, [region for region, _ in batch], rest_bits=bits)
        self.swap.add(state, [weights for _, weights in batch])
        return state

    def _find_weights(self, parameter: Any, region: Region, part: Region, flat: Tensor) -> Weights:
        held = parameter.ds_tensor
        if flat.numel():
            return flat.data[part.place]
        at = part.start - region.start
        if held.final_location != OffloadDeviceEnum.nvme:
            # Too small for a file.
            weights: Tensor = held.data[at : at + part.numel]
            return weights
        path = Path(parameter.nvme_swapper.get_path(parameter, must_exist=True))
        size = self.dtype.itemsize  # Of the file: what is swapped out has a stand-in of fp16.
        end = (at + part.numel) * size
        if at + part.numel == region.numel:
            end = path.stat().st_size
        return FileRange(path, at * size, end - at * size)

    def _make_flat(self, weights: Tensor) -> Tensor:
        """The weights themselves where they are in host memory, else a copy of them there."""
        own = weights.data
        if own.device.type != "cpu":
            own = own.cpu().pin_memory() if self.offload_optimizer_pin_memory else own.cpu()
        flat = own.view(own.shape)
        flat.requires_grad = True
        return flat

    def _find_regions(self, number: int) -> Iterator[tuple[Region, Any]]:
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
                yield Region(name, start, numel, offset, is_coded), parameter
            offset += size

    def initialize_optimizer_states(self) -> None:
        """Do nothing: there are no fp32 gradients, and the states are there."""

    def _setup_for_real_optimizer(self) -> None:
        super()._setup_for_real_optimizer()
        offset = 0
        sizes = self.fp16_partitioned_groups_flat_numel
        for flat, numel in zip(self.fp32_partitioned_groups_flat, sizes, strict=True):
            gradient = self.grad_partitions_flat_buffer.narrow(0, offset, numel)
            for state in self.optimizer.find(flat):
                state.gradient = gradient
            offset += numel

    def _offload_grad_partition_at_boundary(self, param: Any, grad_buffer: Tensor, *_: Any) -> None:
        # The gradient stays where it is.
        norm = self._constant_buffered_norm2(grad_buffer, _NORM_PIECE)
        self.norm_for_param_grads[self.get_param_id(param)] = norm

    def unscale_and_clip_grads(self, sub_group_id: int, total_norm: Any) -> None:
        """Find the factor; the native step applies it."""
        self.optimizer.set_scale(float(self.loss_scale), total_norm, self.clip_grad)

    def _optimizer_step(self, sub_group_id: int) -> None:
        flat = self.fp32_partitioned_groups_flat[sub_group_id]
        group = self.optimizer.param_groups[self.sub_group_to_group_id[sub_group_id]]
        group["params"] = [flat]
        self.optimizer.step()
        group["params"] = []

    def _reassign_or_swap_out_partitioned_parameters(self, sub_group_id: int) -> None:
        low = self.fp16_partitioned_groups_flat[sub_group_id]
        flat = self.fp32_partitioned_groups_flat[sub_group_id]
        if low is not None and low.data_ptr() != flat.data_ptr():
            low.data.copy_(flat.data)

    def _post_step(self, timer_names: Any) -> None:
        if self.swap is not None:
            # DeepSpeed reads the weights next.
            self.swap.drain()
        super()._post_step(timer_names)
