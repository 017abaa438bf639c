"""Sentences and paragraphs of documentation."""

import re
from collections.abc import Iterator

_END = re.compile(
    r"(?<!\.\w)(?<!\.\.)(?<!\betc)(?<!\bvs)(?<!\bcf)[.!?](?=[\"')\]]*(?:\s|$))|\n\s*\n"
)
"""The mark that ends a sentence, unlike those of "e.g." and "..."; or a blank line."""

_MARK = re.compile(r"[.!?][\"')\]]*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001 (the sign stands in the sources)
_CODE = (">>>", "->", "::", "==", "--")
_SENTENCE_CHARACTERS = (15, 300)
_PARAGRAPH_CHARACTERS = (40, 600)


def find_end(text: str, start: int = 0) -> int:
    """Find where the sentence that `start` stands in ends: the place of its mark."""
    found = _END.search(text, start)
    return found.start() if found else len(text)


def split_first_sentence(text: str) -> tuple[str, str] | None:
    """Split documentation into its first sentence, in one line, and what follows it.

    Returns:
        None where it begins with code, a signature or a heading instead.
    """
    end = find_end(text)
    mark = _MARK.match(text, end)
    end = mark.end() if mark else end
    sentence = join_lines(text[:end])
    least, most = _SENTENCE_CHARACTERS
    if not least <= len(sentence) <= most or not sentence[0].isupper():
        return None
    if any(sign in sentence for sign in _CODE) or len(find_words(sentence)) < 3:
        return None
    return sentence, text[end:].strip()


def find_paragraphs(text: str) -> Iterator[str]:
    """Find the paragraphs of prose, each in one line; code, lists and tables are left out."""
    least, most = _PARAGRAPH_CHARACTERS
    for block in re.split(r"\n\s*\n", text):
        paragraph = join_lines(block)
        if not least <= len(paragraph) <= most or not paragraph[0].isalpha():
            continue
        is_indented = any(line[:1].isspace() for line in block.splitlines())
        if not is_indented and not any(sign in paragraph for sign in _CODE):
            yield paragraph


def find_words(text: str) -> list[str]:
    """Find the words: runs of letters, maybe with an apostrophe inside."""
    return _WORD.findall(text)


def find_sentence_words(text: str) -> list[list[str]]:
    """Find the words of each sentence that has any."""
    sentences = (find_words(sentence) for sentence in _END.split(text))
    return [words for words in sentences if words]


def join_lines(text: str) -> str:
    """Write text in one line."""
    return " ".join(text.split())
