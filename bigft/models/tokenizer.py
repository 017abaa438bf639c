"""The tokenizer of a model."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bigft.config.hints import suggest
from bigft.errors import ConfigError
from bigft.models.facts import ModelFacts
from bigft.models.section import ModelSection

_CONTROL_TOKEN = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>")
"""How templates spell what should be one token each."""

_logger = logging.getLogger(__name__)


def load_tokenizer(
    section: ModelSection,
    facts: ModelFacts,
    load_builtin: Callable[[], Any],
    templates: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Load the tokenizer that was named, the model's own, or the built-in one.

    The built-in one serves only models with random weights: a trained model means its own tokens.

    Args:
        section: Names the tokenizer and its chat template.
        facts: Whether the model has weights.
        load_builtin: Loads the built-in tokenizer.
        templates: Chat templates that `section.chat_template` may name instead of a file.

    Raises:
        ConfigError: None can be found, or the chat template is neither a name nor a file.
    """
    tokenizer = _pick(section, facts, load_builtin)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if section.chat_template is not None:
        tokenizer.chat_template = _read_template(section.chat_template, templates)
        _warn_of_missing_tokens(section.chat_template, tokenizer)
    return tokenizer


def _read_template(name: str, templates: Mapping[str, str]) -> str:
    if name in templates:
        return templates[name]
    file = Path(name).expanduser()
    if not file.is_file():
        near = suggest(name, templates) or f"; names: {', '.join(templates) or 'none'}"
        raise ConfigError(
            f"--model.chat_template {name}: no such file, and no built-in template{near}; leave it "
            "out for the tokenizer's own template"
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--model.chat_template {name}: cannot be read ({error})") from error


def _warn_of_missing_tokens(name: str, tokenizer: Any) -> None:
    written = dict.fromkeys(_CONTROL_TOKEN.findall(tokenizer.chat_template))
    known = tokenizer.get_vocab() if written else {}
    missing = [token for token in written if token not in known]
    if missing:
        _logger.warning(
            "--model.chat_template %s writes %s, which the tokenizer does not have as tokens of "
            "their own; they are written as plain text, several tokens each",
            name,
            ", ".join(missing),
        )


def _pick(section: ModelSection, facts: ModelFacts, load_builtin: Callable[[], Any]) -> Any:
    if section.tokenizer == "builtin":
        return load_builtin()
    if section.tokenizer is None and not facts.has_weights and not _has_own(section):
        return load_builtin()
    return _load(section.tokenizer or section.name, section)


def _has_own(section: ModelSection) -> bool:
    folder = Path(section.name)
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
    )
    return folder.is_dir() and any((folder / name).is_file() for name in names)


def _load(source: str, section: ModelSection) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source,
            # The model's revision means nothing in another repository.
            revision=(section.revision if source == section.name else None) or "main",
            trust_remote_code=section.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        flag = "--model.tokenizer" if section.tokenizer else "--model"
        raise ConfigError(
            f"{flag} {source}: no tokenizer can be loaded from there"
            f" ({str(error).strip().splitlines()[0]}); name one with --model.tokenizer FOLDER_OR_ID"
        ) from error


def adopt_special_tokens(module: Any, tokenizer: Any, end_ids: list[int]) -> None:
    """Give a model with random weights the special tokens of its tokenizer.

    Args:
        module: A transformers model; its config and generation config are changed.
        tokenizer: Whose tokens it will be trained on.
        end_ids: Tokens at which generation stops.
    """
    config = module.config.get_text_config()
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(module, "generation_config", None)
    if generation is None:
        return  # It does not write text.
    generation.bos_token_id = tokenizer.bos_token_id
    generation.eos_token_id = end_ids
    generation.pad_token_id = tokenizer.pad_token_id
