"""A small module trained with its optimizer in host memory, without a run around it."""

from typing import Any

STEPS = 4


def train_small(
    zero: dict[str, Any], *, bf16: bool = False, accumulation: int = 1, clip: float = 0.0
) -> dict[str, Any]:
    """Train on both ranks' batches; a layer has no part in the second step.

    Args:
        zero: Changes of the `zero_optimization` section.
        bf16: Whether the model is.
        accumulation: Micro-steps per step.
        clip: Largest norm of gradients; 0 for any.

    Returns:
        `norms` of all steps, this rank's fp32 `weights` as `(name, start, values)`, and `own`: how
        many of its vectors are the model's own.
    """
    import deepspeed
    import torch

    from bigft.engine.host_zero import host_zero
    from bigft.optim.host import HostAdamW

    model = make_small()
    model.to(torch.bfloat16 if bf16 else torch.float32)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    ds = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32" if accumulation > 1 or not bf16 else "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "cpu"},
            "reduce_bucket_size": 5000,
            **zero,
        },
    }
    with host_zero():
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=groups,
            optimizer=lambda groups: HostAdamW(
                groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, moment_bits=32
            ),
            config=ds,
        )
    norms = []
    for step in range(STEPS):
        for micro in range(accumulation):
            number = (step * accumulation + micro) * 2 + torch.distributed.get_rank()
            loss = measure_loss(engine, step, number, next(model.parameters()).dtype)
            engine.backward(loss)
            engine.step()
        norms.append(float(engine.get_global_grad_norm()))
    outer = engine.optimizer
    own = sum(
        flat.data_ptr() == parts[torch.distributed.get_rank()].data_ptr()
        for flat, parts in zip(
            outer.single_partition_of_fp32_groups,
            outer.parallel_partitioned_bit16_groups,
            strict=True,
        )
    )
    found = {"norms": norms, "weights": list(_read_weights(outer.optimizer)), "own": own}
    engine.destroy()
    return found


def make_small() -> Any:
    """A module whose parameters no even cut suits."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = {"a": nn.Linear(37, 301), "spare": nn.Linear(37, 301), "b": nn.Linear(301, 5)}

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict(layers)

        def forward(self, x: Any, *, spares: bool) -> Any:
            hidden = torch.tanh(self.layers["a"](x))
            if not spares:
                hidden = hidden + self.layers["spare"](x)
            return self.layers["b"](hidden)

    return Small()


def measure_loss(model: Any, step: int, number: int, dtype: Any) -> Any:
    """The loss of a batch of its own."""
    import torch

    generator = torch.Generator().manual_seed(number)
    x = torch.randn(4, 37, generator=generator).to(dtype)
    return model(x, spares=step == 1).float().square().mean()


def _read_weights(optimizer: Any) -> Any:
    import torch

    from bigft.optim.reference import join

    for state in optimizer.flat_states:
        for row in state.rows:
            values = row.weights.float().numpy()
            if state.is_split:
                upper = row.weights.view(torch.int16).numpy().view("uint16")
                values = join(upper, row.rest.numpy())
            yield row.region.parameter, row.region.start, values.copy()
