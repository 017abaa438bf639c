"""What the ranks tell each other once per step: their losses, and whether somebody wants to stop.

A request to stop reaches one rank or several, at any moment. Acting on it alone would leave the
others in a collective, so the ranks compare notes.
"""

import signal

import torch
from torch import Tensor

from bigft.distributed.exchange import Exchange
from bigft.distributed.place import HERE
from bigft.distributed.signals import STOP_SIGNALS, StopSignals

_LAUNCHER_GONE = 1.0
"""What stands for a request that is no signal. Signals stand for themselves, and win."""


class Rendezvous:
    """Where the ranks meet once per step, and once per batch of an evaluation."""

    def __init__(self, signals: StopSignals, device: torch.device) -> None:
        """Compare the requests in `signals` over all ranks."""
        self._signals = signals
        self._exchange = Exchange(device)
        self._device = device
        self.stop: str | None = None
        """Who or what stops the run, the same on every rank; None: it goes on."""
        self.losses: Tensor = torch.empty(0, 0)
        """Of the latest step, `(world_size, micro_batches)` fp32 on the CPU: sums of token losses,
        before anything is divided."""

    def begin(self, micro_losses: list[Tensor]) -> None:
        """Send this step's losses and this rank's request. Collective: every rank."""
        request = torch.tensor([_encode(self._signals.name)])
        self._exchange.begin(
            torch.cat([request.to(self._device, non_blocking=True), *_flat(micro_losses)])
        )

    def settle(self) -> None:
        """Read what was sent, if it was not read yet."""
        found = self._exchange.read()
        if found is not None:
            self.stop = self.stop or _decode(float(found[:, 0].max()))
            self.losses = found[:, 1:]

    def poll(self) -> bool:
        """Read the previous request and send anew; return whether to stop.

        The answer is one call late, and costs no waiting.

        Collective: every rank, as often on each.
        """
        HERE.beat()
        self.settle()
        if self.stop is None:
            self.begin([])
        return self.stop is not None


def _flat(losses: list[Tensor]) -> list[Tensor]:
    return [loss.reshape(1).float() for loss in losses]


def _encode(name: str | None) -> float:
    if name is None:
        return 0.0
    number = next((n for n in STOP_SIGNALS if n.name == name), None)
    return _LAUNCHER_GONE if number is None else float(number)


def _decode(value: float) -> str | None:
    if value == 0.0:
        return None
    return "the end of its launcher" if value == _LAUNCHER_GONE else signal.Signals(int(value)).name
