"""The options of commands other than train."""

import pytest

from bigft.config.options import COMMANDS, ConsolidateOptions, GenerateOptions, read_options
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
