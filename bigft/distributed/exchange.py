"""A few numbers that all ranks tell each other, without waiting for the device."""

import torch
from torch import Tensor


class Exchange:
    """One small all-gather that is begun here and read there.

    On an accelerator the result is copied to the host behind the work that is already queued, and
    read after something else has waited for the device: DeepSpeed waits once per step, for the
    gradient norm. So the exchange itself adds no waiting.
    """

    def __init__(self, device: torch.device) -> None:
        """Exchange over `device`."""
        self._device = device
        self._found: Tensor | None = None
        self._copied: torch.Event | None = None

    def begin(self, mine: Tensor) -> None:
        """Give this rank's numbers, `(n,)` fp32 on the device. Collective: every rank."""
        rows = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(rows, mine)
        found = torch.stack(rows)
        if self._device.type == "cpu":
            self._found = found
            return
        self._found = torch.empty(found.shape, pin_memory=True)
        self._found.copy_(found, non_blocking=True)
        self._copied = torch.Event(self._device)
        self._copied.record()

    def read(self) -> Tensor | None:
        """Return the rows of the latest `begin` once, `(world_size, n)` on the CPU, else None."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        found, self._found = self._found, None
        return found
