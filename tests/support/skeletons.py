"""Models of transformers without storage: names and shapes to hold others to."""

import copy
from dataclasses import dataclass


@dataclass(frozen=True)
class Skeleton:
    """What transformers builds for a config and a task."""

    class_name: str
    weights: list[tuple[str, tuple[int, ...]]]
    buffers: list[tuple[str, tuple[int, ...]]]
    windows: list[int | None]
    """Of each layer; empty where no layer has one."""


def find_skeleton(config, task, *, num_labels=2):
    """Build a model on the meta device, None where transformers has no class for the task."""
    import torch
    import transformers

    name = {
        "causal_lm": "AutoModelForCausalLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
        "masked_lm": "AutoModelForMaskedLM",
        "classification": "AutoModelForSequenceClassification",
        "regression": "AutoModelForSequenceClassification",
    }[task]
    auto_class = getattr(transformers, name)
    values = copy.deepcopy(dict(config))
    built = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    built.num_labels = num_labels
    if type(built) not in auto_class._model_mapping:
        return None
    with torch.device("meta"):
        return describe(auto_class.from_config(built))


def describe(module):
    """List the tensors of a module, and the windows that its config came to."""
    config = module.config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    kinds = kinds or ["sliding_attention"] * config.num_hidden_layers
    return Skeleton(
        type(module).__name__,
        [(name, tuple(tensor.shape)) for name, tensor in module.named_parameters()],
        [(name, tuple(tensor.shape)) for name, tensor in module.named_buffers()],
        [window if kind == "sliding_attention" else None for kind in kinds] if window else [],
    )
