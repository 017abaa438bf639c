"""A trial before training: do examples that share a sequence see each other?

transformers tells packed examples apart by `position_ids` that restart. Architectures that compute
positions themselves (OPT, Bloom) or carry a state along the sequence (Mamba) ignore them, without
a word.
"""

from typing import Any

import torch

from bigft.data.loading.collate import IGNORED, Batch
from bigft.errors import ConfigError
from bigft.tasks.task import Forward, Task

_LENGTH = 8
# A masked token has weight exactly zero, so a dense model scores exactly the same. Routing may
# group the tokens of a mixture of experts otherwise, and round otherwise.
_TOLERANCE = 1e-7
_TOLERANCE_EXPERTS = 1e-3
_NOISE_FACTOR = 10


@torch.no_grad()
def check_packing(
    task: Task, forward: Forward, *, num_sequences: int, num_tokens: int, device: torch.device
) -> None:
    """Score one example behind two different neighbours; its loss must not change.

    Args:
        task: Scores batches.
        forward: The model in evaluation mode.
        num_sequences: Of a micro-batch in training.
        num_tokens: Size of the vocabulary.
        device: Of the model.

    Raises:
        ConfigError: The neighbour shows through.

    Collective: every rank.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(num_tokens, (3, _LENGTH), generator=generator)
    first, again, other = (
        task.score(forward, _pack(neighbour, drawn[2], num_sequences).to(device)).loss
        for neighbour in (drawn[0], drawn[0], drawn[1])
    )
    # Kernels that do not add in a fixed order differ from themselves by this much.
    noise = _NOISE_FACTOR * abs(first - again)
    module: Any = getattr(forward, "module", forward)
    has_experts = any("expert" in key for key in module.config.to_dict())
    tolerance = _TOLERANCE_EXPERTS if has_experts else _TOLERANCE
    if abs(first - other) > tolerance * abs(first) + noise:
        raise ConfigError(
            f"--packing best_fit: {type(module).__name__} does not keep examples apart that share a"
            f" sequence (the same example scores {first:.7g} and {other:.7g} behind two"
            " different neighbours); use --packing none"
        )


def _pack(neighbour: torch.Tensor, example: torch.Tensor, num_sequences: int) -> Batch:
    input_ids = torch.cat([neighbour, example]).expand(num_sequences, -1).contiguous()
    labels = input_ids.clone()
    labels[:, : _LENGTH + 1] = IGNORED
    positions = torch.arange(_LENGTH).repeat(2).expand(num_sequences, -1).contiguous()
    return Batch(input_ids, labels, positions, None)
