"""GPT-2: learned positions, one projection for queries, keys and values, plain MLPs."""

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.parts import Part, assemble, linear, norm, plain_block, table, under
from bigft.planner.architecture.weights import Architecture, Stack, Weight


def _gpt2(case: Case) -> Architecture:
    if case.flag("add_cross_attention"):
        raise case.unknown("cross-attention in a decoder alone is not written down")
    hidden, heads = case.number("n_embd"), case.number("n_head")
    inner = case.find_number("n_inner") or 4 * hidden
    layer = [
        *norm("ln_1", hidden, bias=True),
        *_transposed("attn.c_attn", hidden, 3 * hidden),
        *_transposed("attn.c_proj", hidden, hidden),
        *norm("ln_2", hidden, bias=True),
        *_transposed("mlp.c_fc", hidden, inner),
        *_transposed("mlp.c_proj", inner, hidden),
    ]
    blocks = [
        plain_block(under(f"transformer.h.{number}.", layer), hidden, heads, inner)
        for number in range(case.number("n_layer"))
    ]
    base: list[Part] = [
        *table("transformer.wte", case.number("vocab_size"), hidden),
        *table("transformer.wpe", case.number("n_positions"), hidden),
        Stack("decoder", tuple(blocks)),
        *norm("transformer.ln_f", hidden, bias=True),
    ]
    if case.has_labels:
        head = linear("score", hidden, case.labels)
        return assemble(case, "GPT2ForSequenceClassification", [*base, *head], hidden=hidden)
    head = [] if case.is_tied else linear("lm_head", hidden, case.number("vocab_size"))
    return assemble(case, "GPT2LMHeadModel", [*base, *head], hidden=hidden)


def _transposed(name: str, inputs: int, outputs: int) -> list[Weight]:
    """Write down transformers' `Conv1D`, a linear layer the other way round."""
    return [Weight(f"{name}.weight", (inputs, outputs)), Weight(f"{name}.bias", (outputs,))]


FAMILIES = {
    "gpt2": Family(
        DECODER_TASKS,
        _gpt2,
        {
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
    ),
}
