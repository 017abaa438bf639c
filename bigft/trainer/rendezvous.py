"""What the ranks tell each other once per step: losses, how long they worked, requests to stop.

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


PARTS = ("data", "forward and backward", "optimizer")
"""Of a step: what a rank may be slow in."""


class Rendezvous:
    """Where the ranks meet once per step, and once per batch of an evaluation."""

    def __init__(self, signals: StopSignals, device: torch.device) -> None:
        """Compare the requests in `signals` over all ranks."""
        self._signals = signals
        self._exchange = Exchange(device)
        self._device = device
        self.stop: str | None = None
        """Who or what stops the run, the same on every rank; None: it goes on."""
        self.own: tuple[float, float, float] = (0.0, 0.0, 0.0)
        """Seconds of the latest step that this rank has worked by itself, by `PARTS`; sent with
        the losses of the next one."""
        self.own_of_all: Tensor = torch.empty(0, 0)
        """What all ranks have sent so, `(world_size, 3)` fp32 on the CPU."""
        self.losses: Tensor = torch.empty(0, 0)
        """Of the latest step, `(world_size, micro_batches)` fp32 on the CPU: sums of token losses,
        before anything is divided."""

    def begin(self, micro_losses: list[Tensor]) -> None:
        """Send this step's losses and this rank's request. Collective: every rank."""
        first = torch.tensor([_encode(self._signals.name), *self.own])
        self._exchange.begin(
            torch.cat([first.to(self._device, non_blocking=True), *_flat(micro_losses)])
        )

    def settle(self) -> None:
        """Read what was sent, if it was not read yet."""
        found = self._exchange.read()
        if found is not None:
            self.stop = self.stop or _decode(float(found[:, 0].max()))
            self.own_of_all = found[:, 1 : 1 + len(PARTS)]
            self.losses = found[:, 1 + len(PARTS) :]

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
