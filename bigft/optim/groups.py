"""Which parameters are decayed."""

from typing import Any

from torch import nn

_NEVER_DECAYED = ("norm", "bias")


def build_groups(
    module: nn.Module, weight_decay: float, *, fp32_embeddings: bool = False
) -> list[dict[str, Any]]:
    """Split trainable parameters into decayed matrices and undecayed norms and biases.

    With `fp32_embeddings` those of embeddings are a group of their own, with `moment_bits` 32.

    A parameter is undecayed when it has one dimension or fewer, or when its own name or its
    module's class names a norm or a bias. Works on partitioned parameters (`ds_shape`).

    Returns:
        Groups for an optimizer, empty ones left out, each parameter once, in the order of
        `named_parameters`.
    """
    decayed, undecayed, embeddings = [], [], []
    tables = {
        id(child.weight)
        for child in module.modules()
        if fp32_embeddings and isinstance(child, nn.Embedding)
    }
    norms = {
        id(parameter)
        for child in module.modules()
        if "norm" in type(child).__name__.lower()
        for parameter in child.parameters(recurse=False)
    }
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)
        leaf = name.rsplit(".", 1)[-1].lower()
        if len(shape) <= 1 or id(parameter) in norms or leaf in _NEVER_DECAYED:
            undecayed.append(parameter)
        elif id(parameter) in tables:
            embeddings.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": embeddings, "weight_decay": weight_decay, "moment_bits": 32},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
