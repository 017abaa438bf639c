"""Every setting says what it means; no section grows without limit."""

import pytest

from bigft.config.options import COMMANDS
from bigft.config.typed import fields_of, section_of
from bigft.run.preview import OrderSection, PreviewSettings
from bigft.run.settings import Run


def _inside(model, prefix=""):
    for name, info in model.model_fields.items():
        inner = section_of(info)
        if inner is not None:
            yield f"{prefix}{name}", inner
            yield from _inside(inner, f"{prefix}{name}.")


SECTIONS = dict(_inside(Run))
SECTIONS |= {name: command.options for name, command in COMMANDS.items() if command.options}
SECTIONS |= {f"{name} (own)": command.own for name, command in COMMANDS.items() if command.own}
SECTIONS |= {"data command": PreviewSettings, "order": OrderSection}


def test_every_setting_has_a_docstring():
    assert [path for path, info in fields_of(Run) if not info.description] == []


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_section_is_documented_and_small(section):
    assert section.__doc__
    assert len(section.model_fields) <= 12
    for name, info in section.model_fields.items():
        if section_of(info):
            continue  # Its own docstring says what it is for.
        assert info.description, name
        assert info.description.strip().endswith("."), name
        assert not info.is_required(), f"{name} has no default"
        assert not name.startswith(("use_", "enable_", "disable_", "no_")), name
