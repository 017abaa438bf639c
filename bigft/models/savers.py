"""Activation checkpointing: what is kept of the forward pass, and what is computed again."""

import inspect
from typing import Any

import torch


def save_activations(module: Any, mode: str, device: torch.device) -> str | None:
    """Make the layers of a transformers model keep less, before the engine wraps it.

    Args:
        module: A transformers model.
        mode: `none`, `full` (each layer's input stays, the rest is recomputed; Chen et al.,
            arXiv 1604.06174) or `full_cpu_offload` (the inputs wait in host memory).
        device: Where the model computes.

    Returns:
        A note when the request means something else here, or None.
    """
    if mode == "none":
        return None
    if not getattr(module, "supports_gradient_checkpointing", False):
        return f"{type(module).__name__} cannot recompute activations: all of them are kept"
    offload = mode == "full_cpu_offload"
    note = None
    if offload and device.type == "cpu":
        offload, note = (
            False,
            "activations are in host memory already: full_cpu_offload is full here",
        )
    # Non-reentrant: the reentrant variant loses gradients of layers without gradient inputs and
    # runs ZeRO-3's hooks twice.
    keywords = {"use_reentrant": False}
    # The old name is what older transformers 5 know; the first argument is the same.
    enable = getattr(module, "activation_checkpointing_enable", None)
    enable = enable or module.gradient_checkpointing_enable
    if not offload:
        enable(keywords)
    elif "offload" in inspect.signature(enable).parameters:
        enable(keywords, offload=True)
    else:
        enable(keywords)
        note = "this transformers version keeps layer inputs on the device: update it"
    return note
