"""The options of commands other than train."""

import pytest

from bigft.config.options import (
    COMMANDS,
    ConsolidateOptions,
    EvaluateOptions,
    GenerateOptions,
    options_of,
    read_options,
)
from bigft.config.request import Request
from bigft.errors import ConfigError


def test_options_get_their_types():
    settings = {"temperature": "0", "json": "true", "prompt": "none"}
    options = read_options(Request("generate", ("m",), settings), GenerateOptions)
    assert (options.temperature, options.as_json, options.prompt) == (0.0, True, "none")


def test_all_mistakes_are_listed():
    request = Request("consolidate", ("r",), {"dtyp": "x", "dtype": "int8"}, config="a.json")
    with pytest.raises(ConfigError) as caught:
        read_options(request, ConsolidateOptions)
    text = str(caught.value)
    assert "3 problems" in text
    assert "did you mean --dtype?" in text
    assert "--config" in text


def test_every_option_has_a_docstring():
    for command in COMMANDS.values():
        for name, info in (command.options.model_fields if command.options else {}).items():
            assert info.description, name


def test_options_in_subsections_are_written_flat():
    settings = {"max_new_tokens": "7", "max_seconds": "1.5", "metrics": "bleu, f1"}
    options = read_options(Request("evaluate", ("m",), settings), EvaluateOptions)
    assert (options.generation.max_new_tokens, options.generation.max_seconds) == (7, 1.5)
    assert options.metrics == ["bleu", "f1"]
    with pytest.raises(ConfigError, match="--max_examples=0: .*greater than 0"):
        read_options(Request("evaluate", ("m",), {"max_examples": "0"}), EvaluateOptions)
    with pytest.raises(ConfigError, match="generation.max_examples: no such option"):
        read_options(Request("evaluate", ("m",), {"generation.max_examples": "1"}), EvaluateOptions)
    with pytest.raises(ConfigError, match="did you mean bleu"):
        read_options(Request("evaluate", ("m",), {"metrics": "f1,blue"}), EvaluateOptions)


def test_flat_options_have_names_of_their_own():
    for command in COMMANDS.values():
        names = [name for name, _ in options_of(command.options)] if command.options else []
        assert len(names) == len(set(names))
