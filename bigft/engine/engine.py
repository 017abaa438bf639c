"""The typed face of DeepSpeed's engine: forward, backward, step.

The one trap lives here. ZeRO averages gradients over ranks and `DeepSpeedEngine.backward` divides
by the accumulation steps. bigft's loss is a sum over supervised tokens divided by the tokens of
the whole global batch, so both are undone in `backward`; `tests/integration/test_training.py`
holds world size 1, world size 2 and accumulation against each other.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bigft.engine.host_swap import HostSwap
from bigft.engine.nonfinite import guard, scale_loss
from bigft.engine.swap_verify import SwapGuard
from bigft.optim.host import HostAdamW


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    learning_rate: float
    """The one used in this step."""
    grad_norm: float | None
    """Global L2 norm before clipping; None when the step was skipped."""
    skipped: bool
    """The loss or the gradients were not finite; no weight changed."""


class Averaging(Protocol):
    """Weights beside those that are trained; they are evaluated and exported in their place."""

    shadow: Any
    """Where they are: this rank's part, for checkpoints."""

    def stepped(self, step: int, *, skipped: bool) -> None:
        """Do what belongs to an optimizer step, after it. Collective: every rank."""

    def shown(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Let the model compute with them inside. Collective: every rank."""

    def describe(self) -> dict[str, float]:
        """Return what evaluations say about themselves."""


class Engine:
    """A DeepSpeed engine with the calls that bigft uses."""

    def __init__(self, wrapped: Any) -> None:
        """Take the engine that `deepspeed.initialize` returned."""
        self.deepspeed = wrapped
        self.swap_guard: SwapGuard | None = None
        """Looks after the swap files, where there are any; see `guard_swap`."""
        self.averaging: Averaging | None = None
        guard(wrapped)
        self._world_size = torch.distributed.get_world_size()
        self._has_trained = False

    def __call__(self, **inputs: Any) -> Any:
        """Run the model's forward pass."""
        return self.deepspeed(**inputs)

    @property
    def module(self) -> torch.nn.Module:
        """The model itself."""
        module: torch.nn.Module = self.deepspeed.module
        return module

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that does the arithmetic, inside ZeRO's wrapper."""
        outer = self.deepspeed.optimizer
        inner: torch.optim.Optimizer = getattr(outer, "optimizer", outer)
        return inner

    @property
    def is_swapped(self) -> bool:
        """Whether optimizer states live in NVMe swap files."""
        return bool(self.deepspeed.zero_nvme_offload_optimizer())

    @property
    def host_swap(self) -> HostSwap | None:
        """The files of an optimizer in host memory that is kept on NVMe."""
        swap: HostSwap | None = getattr(self.deepspeed.optimizer, "swap", None)
        return swap

    def guard_swap(self, swap_guard: SwapGuard | None) -> None:
        """Let the swap files be checked after each step, and before they are saved."""
        self.swap_guard = swap_guard
        self.deepspeed.optimizer.bigft_swap_guard = swap_guard
        if self.host_swap is not None:
            self.host_swap.guard = swap_guard

    def set_training(self, training: bool) -> None:
        """Switch dropout and the like."""
        self.deepspeed.train(training)
        if training and not self._has_trained:
            self._forget_passes()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Be ready for an evaluation inside, with the weights that will be exported.

        Collective: every rank.
        """
        self.set_training(False)
        if self.averaging is None:
            yield
        else:
            with self.averaging.shown(int(self.deepspeed.global_steps)):
                yield
        self.set_training(True)

    @contextlib.contextmanager
    def other_passes(self) -> Iterator[None]:
        """Keep passes inside that are unlike a training step's from slowing down all that follow.

        An encoder that runs alone, for example, as answers begin. The next step then learns the
        order of modules anew.
        """
        before = self._find_order()
        yield
        if self._find_order() is not before:
            self._forget_passes()

    def _find_order(self) -> Any:
        # DeepSpeed makes another one when modules run in another order (0.19.8).
        offload = getattr(self.deepspeed.optimizer, "parameter_offload", None)
        if offload is None:
            return None
        name = "_PartitionedParameterCoordinator__submodule_order"
        return getattr(offload.get_param_coordinator(), name)

    def _forget_passes(self) -> None:
        # Under stage 3 DeepSpeed learns from the first passes which parameters to keep from forward
        # to backward. Its answers are cached by coordinator and place in the pass, and outlive what
        # was learned (0.19.8, `__params_to_release`): after an evaluation before the first step,
        # every step of the run would gather all parameters twice (86 gathers instead of 43),
        # and after answers of a T5 123 times instead of 33.
        offload = getattr(self.deepspeed.optimizer, "parameter_offload", None)
        if offload is None:
            return
        offload.param_coordinator = copy.copy(offload.get_param_coordinator())
        if not offload.param_coordinator.is_invalid_trace():
            offload.param_coordinator._invalidate_trace()

    def backward(self, loss_sum: Tensor, global_tokens: int) -> None:
        """Add one micro-batch's gradient of the mean loss over `global_tokens`.

        Args:
            loss_sum: Scalar, the sum of this rank's token losses.
            global_tokens: Supervised tokens of the whole global batch, all ranks.

        Collective: every rank, the same number of times per step.
        """
        self._has_trained = True
        mean = scale_loss(loss_sum, self._world_size / max(global_tokens, 1))
        self.deepspeed.backward(mean, scale_wrt_gas=False)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            # DeepSpeed counts micro-steps by calls to step; this one changes no weight.
            self.deepspeed.step()

    def step(self) -> StepResult:
        """Update the weights from the accumulated gradients.

        Raises:
            TrainingError: A swap file did not hold what was written to it.

        Collective: every rank.
        """
        learning_rate = float(self.deepspeed.get_lr()[0])
        skipped_before = self.deepspeed.skipped_steps
        self.deepspeed.step()
        if self.swap_guard is not None:
            self.swap_guard.check()
        skipped = self.deepspeed.skipped_steps > skipped_before
        if self.averaging is not None:
            self.averaging.stepped(int(self.deepspeed.global_steps), skipped=skipped)
        norm = None if skipped else self.deepspeed.get_global_grad_norm()
        return StepResult(learning_rate, None if norm is None else float(norm), skipped)

    def measure_state_bytes_per_parameter(self) -> float:
        """Bytes that this rank's optimizer keeps per parameter of its share, after a step.

        Moments and their scales count wherever they are: device, host or NVMe. Master weights
        and gradients do not.
        """
        swapped = self._swapped_state_bytes()
        total, parameters = 0, 0
        if isinstance(self.inner_optimizer, HostAdamW):
            for kept in self.inner_optimizer.flat_states:
                total += kept.moment_bytes
                parameters += kept.numel
        for parameter, state in self.inner_optimizer.state.items():
            tensors = [v for v in state.values() if torch.is_tensor(v) and v.numel() > 1]
            total += sum(t.numel() * t.element_size() for t in tensors)
            parameters += parameter.numel()
        if swapped:
            total += swapped[0]
            parameters += swapped[1]
        return total / max(parameters, 1)

    def _swapped_state_bytes(self) -> tuple[int, int] | None:
        swapper = getattr(self.deepspeed.optimizer, "optimizer_swapper", None)
        if swapper is None:
            return None
        total, parameters = 0, 0
        for info in swapper.swap_params_info.values():
            # The first tensor is the fp32 master weight, the rest are the optimizer's states.
            total += 4 * info.numel() * (info.num_tensors() - 1)
            parameters += info.numel()
        return total, parameters
