"""Settings of the optimizer and its schedule."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section


class OptimSection(Section):
    """How weights are updated."""

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """Update rule. `adamw_8bit` keeps both moments in 8 bits (2 bytes per parameter instead of
    8)."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate, after warm-up. 3e-4 when not given and the model starts from random
    weights."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of matrices; norms and biases are never decayed."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the first moment."""

    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the second moment."""

    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this global L2 norm; 0 switches clipping off."""

    master_bits: Annotated[int, Field(ge=24, le=32, multiple_of=8)] = 32
    """24 or 32: bits of each weight that the optimizer in host memory keeps, the bf16 number of the
    model among them. 24 saves a byte per parameter."""

    fp32_embeddings: bool = False
    """Whether `adamw_8bit` keeps the moments of embeddings as fp32 numbers."""

    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "linear"
    """Course of the learning rate after warm-up, by its Hugging Face name."""

    warmup_steps: Annotated[float, Field(ge=0)] = 0
    """Optimizer steps of linear warm-up; a value below 1 is a fraction of all steps."""

    lr_scheduler_kwargs: dict[str, float] = {}
    """Further arguments of the schedule, e.g. `min_lr_rate` or `num_cycles`."""
