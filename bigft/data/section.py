"""Settings of the data."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section


class DataSection(Section):
    """Where examples come from and how they become rows of tokens."""

    train: str = "builtin"
    """File, folder, glob or hub id; several separated by commas. `builtin` is a corpus read from
    the running Python's standard library documentation."""

    eval: str | None = None
    """As `train`; absent: a held-out share of the training data."""

    max_length: Annotated[int, Field(gt=1)] = 1024
    """Tokens per sequence."""

    packing: Literal["none", "best_fit"] = "best_fit"
    """`best_fit` puts several examples into one sequence; they do not see each other."""

    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the examples held out for evaluation when `eval` is absent; chosen by a hash of
    the example, so a row never moves between the two."""

    train_on: Literal["assistant", "all"] = "assistant"
    """Which tokens count in the loss of a conversation or of a prompt with its answer. Raw text
    always counts as a whole."""

    cache_dir: str | None = None
    """Folder for tokenised data and the built-in tokenizer; absent: `$XDG_CACHE_HOME/bigft` or
    `~/.cache/bigft`."""
