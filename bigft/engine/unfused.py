"""Stage 0 of 16-bit models: DeepSpeed's optimizer, without the step that it takes by itself."""

import contextlib
from collections.abc import Iterator

from deepspeed.runtime import engine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer


class UnfusedOptimizer(FP16_UnfusedOptimizer):  # type: ignore[misc]
    """fp32 weights and a plain optimizer, whose first step is the run's first step.

    DeepSpeed 0.19.8 takes one with gradients of zero when it is built, to have the states there.
    AdamW then counts one step more for the whole run: the first update is 0.65 of what it should
    be, and weights are decayed once more. torch and bitsandbytes make their states when they need
    them.
    """

    def initialize_optimizer_states(self) -> None:
        """Do nothing."""


@contextlib.contextmanager
def unstepped() -> Iterator[None]:
    """Let `deepspeed.initialize` use it inside the block."""
    stock = engine.FP16_UnfusedOptimizer
    engine.FP16_UnfusedOptimizer = UnfusedOptimizer
    try:
        yield
    finally:
        engine.FP16_UnfusedOptimizer = stock
