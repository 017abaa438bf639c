"""Settings of the cleaning of data; everything is off unless it is asked for."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section


class AugmentSection(Section):
    """Changed copies of training rows; answers stay as they are, and so do held-out rows."""

    copies: Annotated[int, Field(ge=0, le=16)] = 0
    """Changed copies per row."""

    delete: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the words that a copy loses, as one random span."""

    swap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the words that move, as two random spans that change places."""

    synonyms: str | None = None
    """A JSON file with an object of lists: a word and what may stand in its place."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Decides what is changed, together with the row; absent: `--seed`."""


class CleanSection(Section):
    """What is changed or left out before tokenising; the preview reports each with its rows."""

    strip: bool = False
    """Trim white space at both ends and at the ends of lines; at most one blank line in a row.
    Lines keep their indentation; the white space between a prompt and its completion stays."""

    normalize: Literal["none", "nfc", "nfkc"] = "none"
    """Unicode normalisation."""

    empty: Literal["reject", "drop"] = "reject"
    """Whether a row without any text is a bad row, or is left out and counted."""

    duplicates: Literal["keep", "drop_exact", "drop_near"] = "keep"
    """Which repeated rows are left out: none, equal ones, or also those with nearly equal words."""

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Rows are near duplicates when their sets of five-word runs overlap at least this much
    (Jaccard index)."""

    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Shorter rows are left out."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longer rows are left out, before `data.overlong` is asked; absent: none."""

    keep_pattern: str | None = None
    """Regular expression; rows in whose text, after masking, it is not found are
    left out."""

    drop_pattern: str | None = None
    """Regular expression; rows in whose text, after masking, it is found are left
    out."""

    mask: list[Literal["email", "phone", "card"]] = []
    """What is replaced by a placeholder: e-mail addresses, phone numbers, card numbers."""

    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the examples that neither training nor evaluation sees, chosen by the same hash as
    `data.eval_fraction`."""

    augment: AugmentSection = AugmentSection()
