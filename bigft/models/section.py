"""Settings of the model."""

from typing import Annotated, Any, Literal

from pydantic import Field

from bigft.config.section import Section


class ModelSection(Section):
    """Which model is trained and how it is built."""

    name: str = "builtin"
    """Hub id, folder with weights, or folder or file with only a `config.json` (random weights).
    `builtin` is a small Llama-style decoder with random weights that needs no download,
    `builtin/bert` an encoder, `builtin/t5` both; what is absent follows from the task."""

    revision: str | None = None
    """Branch, tag or commit of a hub model; the newest when absent."""

    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; absent: the model's own, or the built-in one of 4,096
    entries for a model with random weights that brings none."""

    chat_template: str | None = None
    """Name of a built-in chat template (`chatml`, `llama3`, `llama2`, `mistral`, `gemma`, `phi3`,
    `zephyr`, `vicuna`, `alpaca`) or a Jinja file; absent: the tokenizer's own, else ChatML."""

    activation_checkpointing: Literal["none", "full", "full_cpu_offload"] = "full"
    """What is kept of the forward pass: everything, only each layer's input (the rest is computed
    again), or only each layer's input in host memory."""

    attention: str = "auto"
    """Attention implementation by its transformers name (`sdpa`, `eager`, `flash_attention_2`,
    ...); `auto` picks the fastest one installed here and prints it."""

    config: dict[str, Any] = {}
    """Values of the model's config.json to change, by their names in transformers, such as
    `--model.config.hidden_dropout_prob 0.1`, `attention_dropout` or `rope_theta`; the exported
    model carries them. Sizes can be changed only of models with random weights."""

    freeze: list[str] = []
    """Parameters that are not trained: regular expressions, separated by commas, searched in their
    names, such as `embed_tokens,layers\\.[0-3]\\.`; they take no gradient and no
    optimizer state."""

    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Lower layers learn more slowly: the head with the whole rate, each layer below it, and at
    last the embeddings, with this share of the rate above; 0.65 to 0.95 are common."""

    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """NEFTune: uniform noise of at most alpha / sqrt(tokens of the example x size of an embedding)
    is added to the embeddings in training; 5 to 15 in the paper (arXiv 2310.05914), which tunes
    chat models with it."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for authors you trust."""
