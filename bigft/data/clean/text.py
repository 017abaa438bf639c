"""White space and Unicode forms."""

import re
import unicodedata
from dataclasses import replace
from typing import Literal

from bigft.data.clean.parts import map_texts
from bigft.data.example import Example, PromptAnswer

_BLANK_LINES = re.compile(r"\n{3,}")
_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}


def strip_example(example: Example) -> Example:
    """Trim every text of an example; the same object when nothing was to be trimmed.

    A prompt and its answer are written one behind the other, so they are trimmed as one text: the
    white space where they meet is part of what the model learns, and stays.
    """
    if not isinstance(example, PromptAnswer):
        return map_texts(example, strip_text)
    body, words = example.prompt.rstrip(), example.answer.lstrip()
    # Nothing but white space on one side is no meeting of words.
    between = example.prompt[len(body) :] if body else ""
    indent = example.answer[: len(example.answer) - len(words)] if words else ""
    prompt, answer = strip_text(body) + between, indent + strip_text(words)
    if (prompt, answer) == (example.prompt, example.answer):
        return example
    return replace(example, prompt=prompt, answer=answer)


def strip_text(text: str) -> str:
    r"""Trim both ends and the ends of lines, and leave at most one blank line in a row.

    Lines keep their indentation. So does the first one if the next line is indented too: it is the
    first line of a block of code then. `\r\n` becomes `\n`.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    body = "\n".join(lines).strip("\n")
    return _BLANK_LINES.sub("\n\n", _trim_first_line(body))


def normalize_text(text: str, form: Literal["nfc", "nfkc"]) -> str:
    """Write characters that have several spellings in one way (Unicode Standard Annex 15)."""
    # Most texts are ASCII, which is normal in every form.
    return text if text.isascii() else unicodedata.normalize(_FORMS[form], text)


def _trim_first_line(body: str) -> str:
    if not body[:1].isspace():
        return body
    first, line_break, rest = body.partition("\n")
    following = rest.lstrip("\n")
    if following[:1].isspace():
        return body
    return first.lstrip() + line_break + rest
