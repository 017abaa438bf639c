"""The weights of a model that the planner does not know, asked of transformers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bigft.models.load import leave_as_is, plan_model
from bigft.planner.architecture.weights import Architecture, Block, Stack, Weight
from bigft.run.resolved import Resolved


def read_skeleton(resolved: Resolved) -> Architecture:
    """Build the model without storage, and write down what is in it.

    Weights are exact; what a layer has besides them is taken from the config as far as it says so.

    Raises:
        ConfigError: transformers does not know the model either.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    run, facts = resolved.run, resolved.facts
    classes = {"masked_lm": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}
    auto_class = classes.get(run.task.name, AutoModelForCausalLM)
    plan = plan_model(
        run.model, facts, auto_class, 0, leave_as_is, torch.device("cpu"), torch.bfloat16
    )
    skeleton, text = plan.skeleton, plan.config.get_text_config()
    weights = tuple(Weight(name, tuple(p.shape)) for name, p in skeleton.named_parameters())
    buffers = tuple(Weight(name, tuple(b.shape)) for name, b in skeleton.named_buffers())
    stacks = tuple(
        Stack("decoder", tuple(_read_block(name, layer, text) for layer in layers))
        for name, layers in _list_stacks(skeleton)
    )
    hidden = facts.hidden_size or 0
    vocabulary = skeleton.get_input_embeddings().weight.shape[0]
    return Architecture(
        model_type=facts.model_type,
        class_name=type(skeleton).__name__,
        weights=weights,
        stacks=stacks,
        hidden=hidden,
        vocabulary=vocabulary,
        is_tied=facts.tied,
        head_outputs=vocabulary,
        buffers=buffers,
    )


def _list_stacks(skeleton: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Find the outermost lists of layers."""
    found: list[str] = []
    for name, module in skeleton.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{n}.") for n in found):
            found.append(name)
            yield name, module


def _read_block(name: str, layer: nn.Module, text: Any) -> Block:
    weights = tuple(Weight(f"{name}.{n}", tuple(p.shape)) for n, p in layer.named_parameters())
    hidden = int(text.hidden_size)
    heads = int(getattr(text, "num_attention_heads", 1))
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return Block(
        weights=weights,
        hidden=hidden,
        heads=heads,
        key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
        inner=inner,
        is_gated=any("gate" in weight.name for weight in weights),
    )
