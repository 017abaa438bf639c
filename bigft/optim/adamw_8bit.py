"""bitsandbytes' AdamW with 8-bit states, made safe for states in host memory.

On a GPU it is bitsandbytes' own step. On the CPU that step is a chain of torch operations that
takes 16 to 20 bytes of temporaries per element of the tensor it is given, and ZeRO gives it one
flat tensor of up to a billion elements; so the flat tensor is walked in pieces.
"""

from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional

# 16 Mi elements: about 330 MB of temporaries; a multiple of the 256-element blocks, so that the
# pieces quantise exactly as the whole would.
_PIECE = 1 << 24
_BLOCK = 256


class HostAdamW8bit(bitsandbytes.optim.AdamW8bit):  # type: ignore[misc]
    """`bitsandbytes.optim.AdamW8bit` whose CPU step has bounded temporaries."""

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Update one tensor; the same numbers as bitsandbytes, piece by piece on the CPU."""
        state = self.state[p]
        if p.device.type != "cpu" or state["state1"].dtype != torch.uint8 or p.numel() <= _PIECE:
            super().update_step(group, p, gindex, pindex)
            return
        state["step"] += 1
        config = self.get_config(gindex, pindex, group)
        assert p.grad is not None, "an optimizer steps over parameters with gradients"
        weights, gradient = p.data.view(-1), p.grad.view(-1)
        for start in range(0, p.numel(), _PIECE):
            piece = slice(start, start + _PIECE)
            blocks = slice(start // _BLOCK, (start + _PIECE) // _BLOCK)
            functional.optimizer_update_8bit_blockwise(
                self.optimizer_name,
                gradient[piece],
                weights[piece],
                state["state1"].view(-1)[piece],
                state["state2"].view(-1)[piece],
                config["betas"][0],
                config["betas"][1],
                0.0,
                config.get("alpha", 0.0),
                config["eps"],
                state["step"],
                config["lr"],
                state["qmap1"],
                state["qmap2"],
                state["absmax1"][blocks],
                state["absmax2"][blocks],
                config["weight_decay"],
                gnorm_scale=1.0,
                skip_zeros=config["skip_zeros"],
            )

    def restore_state(self, p: torch.Tensor, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Take over the saved state of one tensor, codes and scales as they are.

        Args:
            p: One of the optimizer's tensors, `(N,)`.
            step: Updates done.
            tensors: `state1` and `state2`, `(N,)`, and for 8-bit ones `absmax1/2` and `qmap1/2`.
        """
        state = self._start_state(p, step)
        for name, values in tensors.items():
            state[name] = values.to(p.device).view(state[name].shape)

    def restore_moments(
        self, p: torch.Tensor, step: int, first: torch.Tensor, second: torch.Tensor
    ) -> None:
        """Take over moments as fp32 numbers, `(N,)` each, quantised anew where states are 8-bit.

        Numbers that come from 8-bit states with other blocks change by one code at most.
        """
        state = self._start_state(p, step)
        for number, values in ((1, first), (2, second)):
            kept = state[f"state{number}"]
            if kept.dtype == torch.uint8:
                codes, scales = _quantise(values, state[f"qmap{number}"].cpu())
                kept.view(-1).copy_(codes)
                state[f"absmax{number}"].copy_(scales)
            else:
                kept.view(-1).copy_(values)

    def _start_state(self, p: torch.Tensor, step: int) -> dict[str, Any]:
        # Stage 3 lends its tensors to a group for the time of a step only, and so it is done here.
        group = self.param_groups[0]
        lent, group["params"] = group["params"], [p]
        self.init_state(group, p, 0, 0)
        group["params"] = lent
        state: dict[str, Any] = self.state[p]
        state["step"] = step
        return state


def _quantise(values: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest codes and the blocks' scales; `table` is sorted, `(256,)`."""
    blocks = -(-len(values) // _BLOCK)
    rows = torch.nn.functional.pad(values, (0, blocks * _BLOCK - len(values))).view(blocks, _BLOCK)
    scales = rows.abs().amax(1)
    shares = rows / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, (table[1:] + table[:-1]) / 2)
    return codes.to(torch.uint8).view(-1)[: len(values)], scales
