"""Values of a model's config that the user sets: `--model.config.attention_dropout 0.1`."""

import json
from collections.abc import Mapping
from typing import Any

from bigft.config.hints import suggest
from bigft.errors import ConfigError, raise_together

_SET_ELSEWHERE = {
    **dict.fromkeys(("model_type", "architectures", "is_encoder_decoder"), "it follows --model"),
    **dict.fromkeys(("id2label", "label2id", "num_labels"), "use --task.labels"),
    "problem_type": "it follows --task and the data",
    **dict.fromkeys(("dtype", "torch_dtype"), "use --ds.bf16.enabled or --ds.fp16.enabled"),
    **dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
        "it follows the tokenizer",
    ),
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), "use --model.attention"),
    **dict.fromkeys(
        ("use_cache", "output_attentions", "output_hidden_states", "return_dict"),
        "training decides it",
    ),
    "quantization_config": "bigft trains all parameters; a quantised model cannot be trained so",
    "transformers_version": "it is written by the export",
}
"""Name -> why it cannot be set here."""


def override(config: Any, values: Mapping[str, Any], raw: Mapping[str, Any] | None = None) -> Any:
    """Set values of a config, each in the type of the value that is there.

    Args:
        config: Of transformers; of a model of several parts the text model's values are found too.
        values: Name -> value, as text or as a recipe has it. `rope_theta` and its like are found
            where transformers 5 keeps them, in `rope_parameters`.
        raw: The `config.json` of a model that starts from random weights: the config is built anew
            from it, so that values that follow from others (a head's size) follow.

    Returns:
        The config, changed in place or built anew.

    Raises:
        ConfigError: There is no such value, it is set elsewhere, or the new one is of another kind;
            all problems are named.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    for name, value in values.items():
        try:
            found[name] = _convert(value, _read(config, name))
        except ValueError as error:
            problems.append(f"--model.config.{name} {_show(value)}: {error}")
    if raw is not None and not problems:
        own = {_canonical(config, n): v for n, v in found.items() if n in _fields(config)}
        config = _checked(lambda: type(config).from_dict({**raw, **own}), own, problems) or config
    for name, value in found.items():
        _checked(lambda n=name, v=value: _write(config, n, v), {name: value}, problems)  # type: ignore[misc]
    if problems:
        raise_together(ConfigError, problems)
    return config


def read_number(text: Any) -> Any:
    """Read a value that may be a number or another JSON value; other text stays text."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _checked(act: Any, values: Mapping[str, Any], problems: list[str]) -> Any:
    """Do what transformers checks, in its own words."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return act()
    except (ValueError, TypeError, StrictDataclassError) as error:
        shown = ", ".join(f"--model.config.{name} {_show(value)}" for name, value in values.items())
        problems.append(f"{shown}: {' '.join(str(error).split())}")
        return None


def _fields(config: Any) -> set[str]:
    aliases = getattr(config, "attribute_map", {})
    return {name for name in {*config.to_dict(), *aliases} if not name.startswith("_")}


def _canonical(config: Any, name: str) -> str:
    return str(getattr(config, "attribute_map", {}).get(name, name))


def _find_rope(config: Any, name: str) -> dict[str, Any] | None:
    """Return the parameters of the positions, if they have this name and are one set."""
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    return rope if isinstance(rope, dict) and name in rope else None


def _read(config: Any, name: str) -> Any:
    """Return the value of now.

    Raises:
        ValueError: There is none, or it is not set here.
    """
    if name in _SET_ELSEWHERE:
        raise ValueError(f"is not set here: {_SET_ELSEWHERE[name]}")
    for part in (config, config.get_text_config()):
        if name in _fields(part):
            return getattr(part, name)
    rope = _find_rope(config, name)
    if rope is not None:
        return rope[name]
    known = {*_fields(config), *_fields(config.get_text_config())} - set(_SET_ELSEWHERE)
    near = suggest(name, sorted(known), "--model.config.")
    listed = near or f"; it has {', '.join(sorted(known))}"
    raise ValueError(f"{type(config).__name__} has no such value{listed}")


def _write(config: Any, name: str, value: Any) -> None:
    for part in (config, config.get_text_config()):
        if name in _fields(part):
            setattr(part, name, value)
            return
    text = config.get_text_config()
    text.rope_parameters = {**text.rope_parameters, name: value}


def _convert(value: Any, before: Any) -> Any:
    """Return the value in the type of the one before.

    Raises:
        ValueError: It is of another kind.
    """
    if isinstance(before, bool):
        words = {"true": True, "false": False}
        if isinstance(value, bool) or str(value).lower() in words:
            return words.get(str(value).lower())
        raise ValueError(f"must be true or false (it is {str(before).lower()})")
    if isinstance(before, int | float):
        number = None if isinstance(value, bool) else read_number(value)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"must be a number (it is {before:g})")
        return float(number) if isinstance(before, float) else number
    if isinstance(before, str):
        return str(value)
    parsed = read_number(value)
    if before is not None and not isinstance(parsed, type(before)):
        raise ValueError(f"must be JSON of the same kind as {json.dumps(before, default=str)}")
    return parsed


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
