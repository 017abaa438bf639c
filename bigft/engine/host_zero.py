"""Where DeepSpeed takes our ZeRO stages instead of its own: for a `HostAdamW`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from deepspeed.runtime import engine

# Derives from stock stage 3 when it is imported, which `initialize` does.
from deepspeed.runtime.superoffload import superoffload_stage3  # noqa: F401
from deepspeed.runtime.zero import stage3

from bigft.engine.host_stage2 import HostZeroStage2
from bigft.engine.host_stage3 import HostZeroStage3
from bigft.optim.host import HostAdamW

_OWN = [
    (engine, "DeepSpeedZeroOptimizer", HostZeroStage2),
    (stage3, "DeepSpeedZeroOptimizer_Stage3", HostZeroStage3),
]


@contextlib.contextmanager
def host_zero() -> Iterator[None]:
    """Let `deepspeed.initialize` use them inside the block."""
    with contextlib.ExitStack() as stack:
        for module, name, own in _OWN:
            stock = getattr(module, name)
            setattr(module, name, _choose_between(stock, own))
            stack.callback(setattr, module, name, stock)
        yield


def _choose_between(stock: Any, own: Any) -> Callable[..., Any]:
    def make(*arguments: Any, **named: Any) -> Any:
        is_ours = any(isinstance(one, HostAdamW) for one in arguments)
        return (own if is_ours else stock)(*arguments, **named)

    return make
