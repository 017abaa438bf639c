"""Help pages and the settings reference."""

import pytest

from bigft.config.flags import FLAGS
from bigft.config.help import render_command, render_overview, render_reference
from bigft.config.options import COMMANDS
from bigft.config.typed import fields_of
from bigft.run.settings import Run


def test_overview_lists_every_command():
    page = render_overview("9.9")
    assert "9.9" in page
    assert all(f"  {name} " in page for name in COMMANDS)


def test_train_page_has_short_flags_first_then_every_dotted_setting():
    page = render_command("train", Run)
    for flag in FLAGS:
        assert f"  --{flag}\n" in page
    for path, _ in fields_of(Run):
        if path not in FLAGS.values():
            assert page.index(f"  --{path}\n") > page.index("  --dry_run\n")
    assert "default 1e-05" in page
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if c.options])
def test_pages_of_other_commands_list_their_options(name):
    page = render_command(name, Run)
    word = COMMANDS[name].word
    assert f"usage: bigft {name} {word}" in page or f"usage: bigft {name} [{word}]" in page
    # What a launch prints is what its run prints.
    assert "--json" in page or name == "launch"


def test_reference_has_a_row_per_setting():
    page = render_reference(Run)
    for path, _ in fields_of(Run):
        assert f"| `{path}`" in page
