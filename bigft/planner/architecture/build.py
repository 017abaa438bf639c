"""From a `config.json` to every weight of the model, by arithmetic."""

from collections.abc import Mapping
from typing import Any

from bigft.planner.architecture import (
    albert,
    bart,
    bert,
    bloom,
    cohere,
    deberta,
    deepseek,
    distilbert,
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    gptj,
    llama,
    mixtral,
    modernbert,
    olmo,
    opt,
    phi,
    qwen,
    stablelm,
    starcoder2,
    t5,
)
from bigft.planner.architecture.case import Case, Family, UnknownArchitectureError
from bigft.planner.architecture.weights import Architecture

FAMILIES: dict[str, Family] = {
    **llama.FAMILIES,
    **qwen.FAMILIES,
    **mixtral.FAMILIES,
    **gemma.FAMILIES,
    **phi.FAMILIES,
    **olmo.FAMILIES,
    **deepseek.FAMILIES,
    **stablelm.FAMILIES,
    **starcoder2.FAMILIES,
    **cohere.FAMILIES,
    **gpt2.FAMILIES,
    **gptj.FAMILIES,
    **gpt_neox.FAMILIES,
    **opt.FAMILIES,
    **bloom.FAMILIES,
    **falcon.FAMILIES,
    **bert.FAMILIES,
    **distilbert.FAMILIES,
    **albert.FAMILIES,
    **deberta.FAMILIES,
    **modernbert.FAMILIES,
    **t5.FAMILIES,
    **bart.FAMILIES,
}
"""By `model_type`."""


def build_architecture(
    config: Mapping[str, Any],
    *,
    task: str = "causal_lm",
    num_labels: int = 2,
    vocabulary: int | None = None,
    has_weights: bool = False,
) -> Architecture:
    """Write down the model that transformers would build.

    Args:
        config: Content of `config.json`, with the changes of `--model.config` in it.
        task: What is trained: `causal_lm`, `seq2seq`, `masked_lm`, `classification` or
            `regression`.
        num_labels: Outputs of the head of the last two.
        vocabulary: Rows of the embedding table, where it has grown.
        has_weights: Whether weights are loaded. Some bring a head of their own where transformers
            alone would tie it (T5 1.1, Flan-T5, mT5).

    Raises:
        UnknownArchitectureError: The family, or what is special in this config, is not known here.
    """
    model_type = str(config.get("model_type"))
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnknownArchitectureError(model_type, "this family is not written down")
    if task not in family.tasks:
        raise UnknownArchitectureError(model_type, f"transformers has no model for {task}")
    values = family.read(config)
    if vocabulary is not None:
        values["vocab_size"] = vocabulary
    case = Case(model_type, values, task, num_labels, has_weights)
    try:
        return family.build(case)
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        # A list where a number belongs, no heads at all: transformers says what is wrong.
        raise case.unknown(f"its config does not add up ({error})") from error
