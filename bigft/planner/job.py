"""What is planned: a model, how it is trained, and on what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bigft.planner.architecture.weights import Architecture, Weight
from bigft.planner.strategy import Strategy

Checkpointing = Literal["none", "full", "full_cpu_offload"]


@dataclass(frozen=True)
class Optimizer:
    """The implementation that will run."""

    class_name: str
    """As `plan_optimizer` names it."""

    moment_bits: Literal[8, 32]
    rest_bits: int = 16
    """Of what makes a bf16 weight an fp32 number; of `HostAdamW` alone."""

    fp32_embeddings: bool = False

    @property
    def is_host(self) -> bool:
        """Whether it is bigft's own, over weights and gradients where they lie."""
        return self.class_name == "HostAdamW"


@dataclass(frozen=True)
class Job:
    """A training run, as far as bytes and seconds go by it."""

    architecture: Architecture
    strategy: Strategy
    optimizer: Optimizer
    ranks: int
    ranks_per_host: int
    is_on_cpu: bool
    """There is no GPU: what would be on it is in host memory."""

    length: int
    """Tokens of a sequence at most."""

    micro_batch: int
    """Sequences of a rank in one forward pass."""

    accumulation: int = 1
    checkpointing: Checkpointing = "full"
    attention: str = "sdpa"
    packing: str = "none"
    task: str = "causal_lm"
    has_weights: bool = False
    """The model starts from files; else from random numbers."""

    ema: bool = False
    frozen: frozenset[str] = frozenset()
    """Names of weights that are not trained."""

    saves_in_background: bool = False
    keep_last: int = 2
    saves_often: bool = False
    """Checkpoints are written before the last step, too."""

    @property
    def is_per_token(self) -> bool:
        """Whether the head says something of every token, and not of every row."""
        return self.task not in ("classification", "regression")

    @property
    def trained(self) -> Sequence[Weight]:
        """The weights that are trained."""
        if not self.frozen:
            return self.architecture.weights
        return [one for one in self.architecture.weights if one.name not in self.frozen]
