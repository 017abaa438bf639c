"""Settings of the data."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section
from bigft.data.clean.section import CleanSection


class LoadingSection(Section):
    """How rows get from the disk into a step."""

    cache_dir: str | None = None
    """Folder for tokenised data and the built-in tokenizer; absent: `$XDG_CACHE_HOME/bigft` or
    `~/.cache/bigft`."""

    num_proc: Annotated[int, Field(ge=0)] | None = None
    """Processes that tokenise; absent: one per core for large data, none but this one for small."""

    num_workers: Annotated[int, Field(ge=0, le=64)] = 1
    """Threads that prepare the next steps' batches during a step; the order never depends on it."""

    names: list[str] | None = None
    """What the parts of the data are called in metrics, in their order; absent: after their
    files."""

    streaming: bool = False
    """Tokenise while training and keep nothing on the disk, for data larger than it. Needs
    `--max_steps` and `--eval_data`; rows are shuffled within a buffer only."""


class DataSection(Section):
    """Where examples come from and how they become rows of tokens."""

    train: str = "builtin"
    """File, folder, glob or hub id; several separated by commas, each with an optional `:weight`
    (share of the tokens). Of a hub id also `org/name/subset@split`. `builtin` is a corpus read from
    the running Python's standard library documentation; `builtin/modules` and its like are small
    data sets for other tasks, made from the same sources."""

    eval: str | None = None
    """As `train`, without weights; absent: a held-out share of the training data."""

    max_length: Annotated[int, Field(gt=1)] = 1024
    """Tokens per sequence."""

    packing: Literal["none", "best_fit"] = "best_fit"
    """`best_fit` puts several examples into one sequence; they do not see each other."""

    overlong: Literal["auto", "truncate", "split", "drop", "error"] = "auto"
    """What becomes of a row longer than `max_length`: cut off on the right, split into several,
    left out, or an error. `auto` splits raw text and truncates everything else."""

    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Which tokens count in the loss of a conversation or of a prompt with its answer. Raw text
    always counts as a whole."""

    format: str = "auto"
    """Name of the data format, where the columns fit more than one; `auto` recognises it."""

    columns: dict[str, str] = {}
    """Which column to read for a name that the format knows: `--data.columns.prompt question`."""

    on_bad_row: Literal["error", "skip"] = "error"
    """What a row that cannot be read means: the end of the run before it starts, or a line in
    `rejected.jsonl` of the run folder."""

    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the examples held out for evaluation when `eval` is absent; chosen by a hash of
    the example, so a row never moves between the two."""

    clean: CleanSection = CleanSection()
    loading: LoadingSection = LoadingSection()


def seed_copies(section: DataSection, seed: int) -> DataSection:
    """Let the seed of a run decide its changed copies, unless they have one of their own.

    Without copies the settings stay as they are, so that runs with other seeds share what was
    tokenised.
    """
    augment = section.clean.augment
    if augment.copies == 0 or augment.seed is not None:
        return section
    clean = {"augment": augment.model_copy(update={"seed": seed})}
    return section.model_copy(update={"clean": section.clean.model_copy(update=clean)})
