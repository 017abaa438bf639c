"""The settings reference of the documentation, for the settings of a run."""

from bigft.config import help as help_pages
from bigft.run.rules import describe_rules
from bigft.run.settings import Run


def render_reference() -> str:
    """Return `docs/reference/settings.md`; a house test holds the committed page equal to it."""
    rules = [f"| `{name}` | {meaning} |" for name, meaning in describe_rules()]
    table = ["", "## Rules across sections", "", "| rule | why |", "|---|---|", *rules]
    return help_pages.render_reference(Run) + "\n".join(table) + "\n"
