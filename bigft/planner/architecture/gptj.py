"""GPT-J: one norm per layer, attention and MLP side by side, a table of rotations per layer."""

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.parts import (
    Part,
    finish_decoder,
    linear,
    norm,
    plain_block,
    table,
    under,
)
from bigft.planner.architecture.weights import Architecture, Stack, Weight


def _gptj(case: Case) -> Architecture:
    hidden, heads = case.number("n_embd"), case.number("n_head")
    inner = case.find_number("n_inner") or 4 * hidden
    numbers = range(case.number("n_layer"))
    layer = [
        *norm("ln_1", hidden, bias=True),
        *linear("attn.k_proj", hidden, hidden),
        *linear("attn.v_proj", hidden, hidden),
        *linear("attn.q_proj", hidden, hidden),
        *linear("attn.out_proj", hidden, hidden),
        *linear("mlp.fc_in", hidden, inner, bias=True),
        *linear("mlp.fc_out", inner, hidden, bias=True),
    ]
    blocks = [
        plain_block(under(f"transformer.h.{number}.", layer), hidden, heads, inner)
        for number in numbers
    ]
    base: list[Part] = [
        *table("transformer.wte", case.number("vocab_size"), hidden),
        Stack("decoder", tuple(blocks)),
        *norm("transformer.ln_f", hidden, bias=True),
    ]
    positions = (case.number("n_positions"), case.find_number("rotary_dim") or hidden)
    buffers = [
        Weight(f"transformer.h.{number}.attn.embed_positions", positions) for number in numbers
    ]
    return finish_decoder(case, "GPTJ", base, hidden=hidden, head_bias=True, buffers=buffers)


FAMILIES = {
    "gptj": Family(
        DECODER_TASKS,
        _gptj,
        {
            "vocab_size": 50400,
            "n_positions": 2048,
            "n_embd": 4096,
            "n_layer": 28,
            "n_head": 16,
            "n_inner": None,
            "rotary_dim": 64,
            "tie_word_embeddings": False,
        },
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
    ),
}
