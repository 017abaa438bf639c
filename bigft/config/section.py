"""The base of every settings section."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings of one part of the program: strict names, frozen after resolution.

    The docstring under each field is its help text, its entry in `bigft explain` and its row in
    the reference page.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
