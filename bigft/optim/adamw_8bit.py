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
