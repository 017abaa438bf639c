"""ZeRO's view of parameters: building them partitioned, gathering them, checking them.

Models are built by transformers, which looks up a process-wide weak reference to learn that
ZeRO-3 is on. `Zero` is the object behind that reference: as long as it lives, models are born
partitioned; when it is dropped, transformers would silently build whole models again.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.utils import groups
from torch import Tensor, nn

from bigft.errors import LaunchError


@contextlib.contextmanager
def _one_group() -> Iterator[None]:
    """Let whatever is partitioned inside use the ranks of one host together, if anything does.

    With `zero_hpz_partition_size` DeepSpeed 0.19.8 makes these groups for the first model, or part
    of one, and asserts that there are none for the next. They are the same ranks each time.
    """
    make = groups._create_zero_param_parallel_group

    def make_once(size: int) -> None:
        if groups._get_zero_param_intra_parallel_group() is None:
            make(size)

    groups._create_zero_param_parallel_group = make_once
    try:
        yield
    finally:
        groups._create_zero_param_parallel_group = make


class Zero:
    """The DeepSpeed settings as far as parameters are concerned; keep it for the whole run."""

    def __init__(self, ds: dict[str, Any]) -> None:
        """Take a resolved DeepSpeed JSON."""
        self.config = ds
        self.stage = int(ds["zero_optimization"]["stage"])

    @property
    def partitions_parameters(self) -> bool:
        """Whether each rank holds only its slice of every parameter (stage 3)."""
        return self.stage == 3

    def is_zero3(self) -> bool:
        """Answer transformers' question; the name is theirs."""
        return self.partitions_parameters

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Make every transformers model built inside this block partitioned from birth.

        Collective: every rank, with the same model.
        """
        from transformers.integrations.deepspeed import (
            set_hf_deepspeed_config,
            unset_hf_deepspeed_config,
        )

        if not self.partitions_parameters:
            unset_hf_deepspeed_config()
            yield
            return
        # torch 2.13: importing torch._dynamo for the first time inside zero.Init fails with a
        # signature mismatch of new_tensor, and a lazily imported model file does just that.

        set_hf_deepspeed_config(self)
        with _one_group():
            yield

    @contextlib.contextmanager
    def gathered(
        self, parameters: Iterable[nn.Parameter], *, modifier_rank: int | None = None
    ) -> Iterator[None]:
        """Hold full parameters inside the block; rank `modifier_rank` may change them.

        Collective: every rank, with the same parameters.
        """
        wanted = list(parameters)
        if not self.partitions_parameters:
            yield
            return
        with deepspeed.zero.GatheredParameters(wanted, modifier_rank=modifier_rank):
            yield

    def partition(self, module: nn.Module) -> None:
        """Partition what was built whole after loading, such as resized embeddings.

        Collective: every rank; rank 0's values count.
        """
        if self.partitions_parameters:
            # A new swapper begins with an empty folder: what the others swapped out would be gone
            # (DeepSpeed 0.19.8, `AsyncPartitionedParameterSwapper.__init__`).
            swappers = (getattr(p, "nvme_swapper", None) for p in module.parameters())
            with _one_group():
                deepspeed.zero.Init(
                    module=module,
                    config_dict_or_path=self.config,
                    param_swapper=next(filter(None, swappers), None),
                )

    def set_leaf_modules(self, module: nn.Module, classes: list[type[nn.Module]]) -> None:
        """Gather modules of these classes as a whole, whichever of their children run."""
        if self.partitions_parameters and classes:
            deepspeed.utils.set_z3_leaf_modules(module, classes)

    def check_partitioned(self, module: nn.Module) -> None:
        """Assert that no rank holds a whole parameter after loading.

        Raises:
            LaunchError: ZeRO-3 is on and a parameter was built outside of it.
        """
        if not self.partitions_parameters:
            return
        whole = [name for name, p in module.named_parameters() if not hasattr(p, "ds_id")]
        if whole:
            raise LaunchError(
                f"{len(whole)} parameters were not partitioned by ZeRO-3, first {whole[0]};"
                " the model builds them outside of transformers' loading path: report this model"
            )


def full_shape(parameter: Tensor) -> torch.Size:
    """Return a parameter's whole shape, partitioned or not."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
