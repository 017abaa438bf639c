"""What decoders after Llama share: grouped heads, gated MLPs, rotary embeddings, experts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bigft.planner.architecture.case import Case
from bigft.planner.architecture.parts import (
    Part,
    finish_decoder,
    linear,
    norm,
    rotary,
    table,
    under,
)
from bigft.planner.architecture.weights import Architecture, Block, Stack, Weight

LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder that all its layers share."""

    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    inner: int

    @property
    def query_width(self) -> int:
        """Of all heads."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Of all heads of keys; values are as wide."""
        return self.key_value_heads * self.head_dim

    def block(self, weights: Iterable[Weight], *, window: int | None = None) -> Block:
        """Make a layer with one gated MLP."""
        return Block(
            weights=tuple(weights),
            hidden=self.hidden,
            heads=self.heads,
            key_value_heads=self.key_value_heads,
            head_dim=self.head_dim,
            inner=self.inner,
            is_gated=True,
            window=window,
        )


def read_shape(case: Case) -> Shape:
    """Read the sizes under the names that Llama gave them."""
    hidden, heads = case.number("hidden_size"), case.number("num_attention_heads")
    return Shape(
        hidden=hidden,
        heads=heads,
        key_value_heads=case.find_number("num_key_value_heads") or heads,
        head_dim=case.find_number("head_dim") or hidden // heads,
        inner=case.number("intermediate_size"),
    )


def attention(
    shape: Shape, *, bias: bool = False, output_bias: bool = False, output: str = "o_proj"
) -> list[Weight]:
    """Write down attention with one projection each for queries, keys, values and the output."""
    return [
        *linear("self_attn.q_proj", shape.hidden, shape.query_width, bias=bias),
        *linear("self_attn.k_proj", shape.hidden, shape.key_width, bias=bias),
        *linear("self_attn.v_proj", shape.hidden, shape.key_width, bias=bias),
        *linear(f"self_attn.{output}", shape.query_width, shape.hidden, bias=output_bias),
    ]


def head_norms(shape: Shape) -> list[Weight]:
    """Write down norms of queries and keys that all heads share."""
    return [
        *norm("self_attn.q_norm", shape.head_dim),
        *norm("self_attn.k_norm", shape.head_dim),
    ]


def whole_norms(shape: Shape) -> list[Weight]:
    """Write down norms over the queries and the keys of all heads together."""
    return [
        *norm("self_attn.q_norm", shape.query_width),
        *norm("self_attn.k_norm", shape.key_width),
    ]


def gated_mlp(hidden: int, inner: int, *, name: str = "mlp", bias: bool = False) -> list[Weight]:
    """Write down `down(act(gate(x)) * up(x))`."""
    return [
        *linear(f"{name}.gate_proj", hidden, inner, bias=bias),
        *linear(f"{name}.up_proj", hidden, inner, bias=bias),
        *linear(f"{name}.down_proj", inner, hidden, bias=bias),
    ]


def experts(count: int, hidden: int, inner: int) -> list[Weight]:
    """Write down gated experts as transformers keeps them: all in two tensors of three dims."""
    return [
        Weight("mlp.experts.gate_up_proj", (count, 2 * inner, hidden)),
        Weight("mlp.experts.down_proj", (count, hidden, inner)),
    ]


def read_windows(case: Case, is_sliding: Callable[[int], bool]) -> list[int | None]:
    """Return each layer's window; see `read_layer_types`."""
    window = case.find_number("sliding_window")
    kinds = read_layer_types(case, is_sliding)
    return [window if kind == "sliding_attention" else None for kind in kinds]


def read_layer_types(case: Case, is_sliding: Callable[[int], bool]) -> list[str]:
    """Return `layer_types`, or what the family takes for it.

    Args:
        case: What is written down.
        is_sliding: What the family does by itself, by the layer's number.
    """
    count, given = case.number("num_hidden_layers"), case.values.get("layer_types")
    if given is None:
        return [
            "sliding_attention" if is_sliding(number) else "full_attention"
            for number in range(count)
        ]
    if len(given) != count:
        raise case.unknown(f"layer_types has {len(given)} entries for {count} layers")
    return list(given)


def repeat_window(case: Case) -> list[int | None]:
    """Return the same window for every layer."""
    return [case.find_number("sliding_window")] * case.number("num_hidden_layers")


def finish_gated(
    case: Case,
    class_stem: str,
    shape: Shape,
    blocks: Sequence[Block],
    *,
    final: Sequence[Weight] | None = None,
    head_bias: bool = False,
    rotary_dim: int | None = None,
    rotary_kinds: Iterable[str] = ("",),
    buffers: Sequence[Weight] = (),
) -> Architecture:
    """Put embeddings, final norm and head around the layers.

    Args:
        case: What is written down.
        class_stem: Start of its class name, e.g. `Llama`.
        shape: Its sizes.
        blocks: Its layers, whose weights are named from the layer on.
        final: The last norm, where it is not one scale named `norm`.
        head_bias: Whether the vocabulary's head has one.
        rotary_dim: How much of a head is rotated, where it is not all.
        rotary_kinds: Prefixes of the frequencies, where layers differ in them.
        buffers: Others than the rotary ones, in front of them.
    """
    layers = [number_block(f"model.layers.{number}.", block) for number, block in enumerate(blocks)]
    last = norm("norm", shape.hidden) if final is None else final
    base: list[Part] = [
        *table("model.embed_tokens", case.number("vocab_size"), shape.hidden),
        Stack("decoder", tuple(layers)),
        *under("model.", last),
    ]
    dim = shape.head_dim if rotary_dim is None else rotary_dim
    return finish_decoder(
        case,
        class_stem,
        base,
        hidden=shape.hidden,
        head_bias=head_bias,
        buffers=[*buffers, *rotary("model.", dim, rotary_kinds)],
    )


def read_rotary_dim(
    case: Case, head_dim: int, default: float, name: str = "partial_rotary_factor"
) -> int:
    """Return how much of a head is rotated, where the family rotates only a part.

    Args:
        case: What is written down.
        head_dim: Of a head.
        default: The part that the family rotates by itself.
        name: Key of the part in `config.json`.
    """
    # transformers 5 writes the part among the other numbers of the rotation.
    for place in ("rope_scaling", "rope_parameters"):
        inner = case.values.get(place)
        if isinstance(inner, Mapping) and inner.get("partial_rotary_factor") is not None:
            return int(head_dim * inner["partial_rotary_factor"])
    given = case.values.get(name)
    return int(head_dim * (default if given is None else given))


def number_block(prefix: str, block: Block) -> Block:
    """Name a layer's weights from the model on."""
    return replace(block, weights=under(prefix, block.weights))
