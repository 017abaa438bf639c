"""8-bit moments in bitsandbytes' state dict and in ours: the same codes, the same blocks.

bitsandbytes (0.50) keeps per tensor `state1` and `state2`, uint8 codes of the tensor's shape,
`absmax1` and `absmax2`, fp32 scales of blocks of 256 elements counted from the tensor's first one,
and `qmap1` and `qmap2`, the tables of values.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigft.optim.code8 import Code, signed_code, unsigned_code
from bigft.optim.reference import Moments, count_blocks


def from_bitsandbytes(state: dict[str, Any]) -> Moments:
    """Take over the moments of one tensor.

    Args:
        state: The tensor's entry of `AdamW8bit.state_dict()["state"]`, or of its `state`.

    Raises:
        ValueError: The states are not 8-bit ones, have other tables, or blocks of another size.
    """
    if state["state1"].dtype != torch.uint8:
        raise ValueError(
            f"the states are {state['state1'].dtype}: bitsandbytes keeps tensors below 4,096"
            " elements in fp32; copy them as they are"
        )
    for number, code in ((1, signed_code()), (2, unsigned_code())):
        _check_table(state[f"qmap{number}"], code, number)
    first, second = (_flat(state[f"state{n}"]) for n in (1, 2))
    scales = [_flat(state[f"absmax{n}"]) for n in (1, 2)]
    if any(len(scale) != count_blocks(len(first), 0) for scale in scales):
        raise ValueError(
            f"{len(scales[0])} scales for {len(first)} codes: blocks of another size than 256"
        )
    return Moments(first, second, *scales)


def to_bitsandbytes(moments: Moments, step: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return an entry for `AdamW8bit`'s state.

    Args:
        moments: Of a whole tensor; copied.
        step: Updates done.
        shape: Of the tensor.

    Raises:
        ValueError: The moments begin in the middle of a block.
    """
    if moments.phase:
        raise ValueError(f"these moments begin {moments.phase} elements into a block")
    return {
        "step": step,
        "state1": torch.from_numpy(moments.first.copy()).view(shape),
        "state2": torch.from_numpy(moments.second.copy()).view(shape),
        "absmax1": torch.from_numpy(moments.first_scale.copy()),
        "absmax2": torch.from_numpy(moments.second_scale.copy()),
        "qmap1": torch.from_numpy(signed_code().values.copy()),
        "qmap2": torch.from_numpy(unsigned_code().values.copy()),
    }


def _flat(tensor: Tensor) -> Any:
    return tensor.detach().cpu().reshape(-1).numpy().copy()


def _check_table(table: Tensor, code: Code, number: int) -> None:
    if not np.allclose(_flat(table), code.values, rtol=1e-6, atol=0):
        raise ValueError(f"qmap{number} is not bitsandbytes' dynamic map")
