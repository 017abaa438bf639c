"""The pieces that models are written down with: layers of torch, and their order."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from bigft.planner.architecture.case import Case
from bigft.planner.architecture.weights import Architecture, Block, Stack, Weight

Part: TypeAlias = Weight | Stack
"""What a model is put together from."""


def linear(name: str, inputs: int, outputs: int, *, bias: bool = False) -> list[Weight]:
    """Write down a `nn.Linear`: `(outputs, inputs)`."""
    weights = [Weight(f"{name}.weight", (outputs, inputs))]
    return [*weights, Weight(f"{name}.bias", (outputs,))] if bias else weights


def norm(name: str, width: int, *, bias: bool = False) -> list[Weight]:
    """Write down a norm: `(width,)`."""
    weights = [Weight(f"{name}.weight", (width,))]
    return [*weights, Weight(f"{name}.bias", (width,))] if bias else weights


def norms(names: Iterable[str], width: int, *, bias: bool = False) -> list[Weight]:
    """Write down several norms of one width."""
    return [weight for name in names for weight in norm(name, width, bias=bias)]


def table(name: str, rows: int, width: int) -> list[Weight]:
    """Write down a `nn.Embedding`."""
    return [Weight(f"{name}.weight", (rows, width))]


def under(prefix: str, weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """Put weights below a module."""
    return tuple(Weight(prefix + weight.name, weight.shape) for weight in weights)


def plain_block(
    weights: Iterable[Weight],
    hidden: int,
    heads: int,
    inner: int,
    *,
    head_dim: int | None = None,
    has_cross_attention: bool = False,
) -> Block:
    """Make a layer with as many heads of keys as of queries, and an MLP without a gate."""
    return Block(
        weights=tuple(weights),
        hidden=hidden,
        heads=heads,
        key_value_heads=heads,
        head_dim=head_dim or hidden // heads,
        inner=inner,
        is_gated=False,
        has_cross_attention=has_cross_attention,
    )


def assemble(
    case: Case,
    class_name: str,
    order: Sequence[Part],
    *,
    hidden: int,
    buffers: Iterable[Weight] = (),
) -> Architecture:
    """Join the parts of a model.

    Args:
        case: What is written down.
        class_name: Of transformers.
        order: All parts in the order of `named_parameters()`.
        hidden: Width of what goes from layer to layer.
        buffers: What is not trained.
    """
    stacks = tuple(part for part in order if isinstance(part, Stack))
    # By name: layers that share weights (ALBERT) are several blocks, but one set of tensors.
    weights: dict[str, Weight] = {}
    for part in order:
        found = _flatten(part.blocks) if isinstance(part, Stack) else (part,)
        weights.update((weight.name, weight) for weight in found)
    return Architecture(
        model_type=case.model_type,
        class_name=class_name,
        weights=tuple(weights.values()),
        stacks=stacks,
        hidden=hidden,
        vocabulary=case.number("vocab_size"),
        is_tied=case.is_tied,
        head_outputs=case.head_outputs,
        buffers=tuple(buffers),
    )


def _flatten(blocks: Iterable[Block]) -> Iterable[Weight]:
    return (weight for block in blocks for weight in block.weights)


def finish_decoder(
    case: Case,
    class_stem: str,
    base: Sequence[Part],
    *,
    hidden: int,
    head: str = "lm_head",
    head_bias: bool = False,
    head_inputs: int | None = None,
    buffers: Iterable[Weight] = (),
) -> Architecture:
    """Put the head of the task on a decoder that is written down.

    Args:
        case: What is written down.
        class_stem: Start of its class name, e.g. `Llama`.
        base: Parts of the base model, with its prefix.
        hidden: Width of what goes from layer to layer.
        head: Name of the vocabulary's head.
        head_bias: Whether that head has one.
        head_inputs: Width before the head, where it is not `hidden`.
        buffers: What is not trained.
    """
    inputs = head_inputs or hidden
    if case.has_labels:
        parts = linear("score", inputs, case.labels)
        return assemble(
            case,
            f"{class_stem}ForSequenceClassification",
            [*base, *parts],
            hidden=hidden,
            buffers=buffers,
        )
    parts = linear(head, inputs, case.number("vocab_size"), bias=head_bias)
    if case.is_tied:
        parts = parts[1:]
    return assemble(
        case, f"{class_stem}ForCausalLM", [*base, *parts], hidden=hidden, buffers=buffers
    )


def rotary(prefix: str, dim: int, kinds: Iterable[str] = ("",)) -> list[Weight]:
    """Write down the frequencies of rotary embeddings, `(dim / 2,)`, and their first copy."""
    return [
        Weight(f"{prefix}rotary_emb.{kind}{name}", (dim // 2 + dim % 2,))
        for kind in kinds
        for name in ("inv_freq", "original_inv_freq")
    ]
