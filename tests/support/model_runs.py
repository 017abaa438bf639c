"""What ranks do in tests of models: load one, and tell what it became."""

from pathlib import Path
from typing import Any

import torch
from torch import nn


def make_pretrained(folder: Path, config: Any, *, seed: int = 0) -> Path:
    """Save a model of any architecture with random weights, and the tests' tokenizer."""
    from making import make_tokenizer
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def try_train_without_fp16(settings: dict[str, Any], folder: str, config: str) -> Any:
    """A run that must fail, on an accelerator that does not compute in fp16; some CPUs do."""
    from unittest.mock import patch

    import runs
    from deepspeed.accelerator import get_accelerator

    with patch.object(get_accelerator(), "is_fp16_supported", lambda: False):
        return runs.try_train(settings, folder, config)


def load(settings: dict[str, Any], folder: str, config: str) -> dict[str, Any]:
    """Load the model of a run as training does; tell each parameter's facts and values."""
    import runs

    from bigft.engine.communication import open_communication
    from bigft.engine.zero import Zero
    from bigft.models.facts import read_facts
    from bigft.models.load import count_parameters
    from bigft.models.tokenizer import load_tokenizer

    resolved = runs._resolve(settings, folder, config)
    world = runs._world()
    open_communication(world.device)
    facts = read_facts(resolved.run.model)
    zero = Zero(resolved.ds)
    tokenizer = load_tokenizer(resolved.run.model, facts, lambda: None)
    model = runs.load_run_model(resolved, world, zero, tokenizer)
    module: Any = model.module
    values, whole = {}, []
    for name, parameter in module.named_parameters():
        if not hasattr(parameter, "ds_id") or parameter.numel():
            whole.append(name)
        with zero.gathered([parameter]):
            values[name] = parameter.detach().float().numpy().copy()
    torch.distributed.barrier()
    return {
        "notes": model.notes,
        "attention": model.attention,
        "values": values,
        "whole": whole,
        "count": count_parameters(module),
        "vocab_size": module.config.get_text_config().vocab_size,
        "tied": module.get_output_embeddings().weight is module.get_input_embeddings().weight,
    }


class Expert(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(rows)))


class RoutedBlock(nn.Module):
    """A mixture as hub models with their own code write it: a gate and a list of experts."""

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(width) for _ in range(num_experts))

    def forward(self, rows: torch.Tensor, wanted: int) -> torch.Tensor:
        # Ranks are sent to different experts on purpose: the others do not run at all.
        weight = torch.softmax(self.gate(rows), -1)[:, wanted : wanted + 1]
        return rows + weight * self.experts[wanted](rows)


class RoutedModel(nn.Module):
    def __init__(self, width: int = 8, num_experts: int = 4) -> None:
        super().__init__()
        # As in any language model: the input of the first block has a gradient.
        self.entry = nn.Linear(width, width)
        self.layers = nn.ModuleList(RoutedBlock(width, num_experts) for _ in range(2))

    def forward(self, rows: torch.Tensor, wanted: int) -> torch.Tensor:
        rows = self.entry(rows)
        for layer in self.layers:
            rows = layer(rows, wanted)
        return rows


def train_routed(steps: int, *, leaves: bool = True) -> list[float]:
    """Train `RoutedModel` under ZeRO-3; each rank uses another expert at each step."""
    import deepspeed
    import runs

    from bigft.engine.build import build_engine
    from bigft.engine.communication import open_communication
    from bigft.engine.zero import Zero
    from bigft.models.load import find_expert_blocks

    world = runs._world()
    open_communication(world.device)
    ds = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": False},
    }
    zero = Zero(ds)
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=ds):
        module = RoutedModel()
    if leaves:
        zero.set_leaf_modules(module, find_expert_blocks(module))
    engine = build_engine(
        module,
        ds=ds,
        groups=[{"params": list(module.parameters())}],
        build_optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
        build_scheduler=None,
        expected_optimizer="AdamW",
    )
    losses = []
    torch.manual_seed(world.rank)
    rows = torch.randn(6, 8)
    for step in range(steps):
        loss = engine.deepspeed(rows, (step + world.rank) % 4).square().mean()
        engine.backward(loss, 1)
        engine.step()
        losses.append(float(loss))
    return losses
