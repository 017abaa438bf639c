"""Changed copies of examples: words deleted, words that change places, words replaced.

All three treat a text as words and the white space between them, and change words only; a word is
what stands between white space, with its punctuation. Deletion and swapping are those of EDA (Wei
and Zou 2019), on spans of neighbouring words rather than on single ones.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigft.data.clean.parts import map_texts
from bigft.data.clean.section import AugmentSection
from bigft.data.example import Example

CHANGED_ROLES = ("text", "user")
"""Who may be misquoted: neither the assistant, nor what the system and the tools say."""

Synonyms = Mapping[str, tuple[str, ...]]
"""By the case-folded word, what may stand in its place."""

_WHITE_SPACE = re.compile(r"(\s+)")
_PLAIN_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_MAX_PROBLEMS = 5


@dataclass(frozen=True)
class Change:
    """What happens to the texts of a copy."""

    delete: float = 0.0
    swap: float = 0.0
    synonyms: Synonyms | None = None

    def make_copy(self, example: Example, digest: int, seed: int, number: int) -> Example:
        """Make the copy of this number, which follows from the arguments alone.

        Returns:
            A changed example, or this very object where no word could be changed.
        """
        key = f"{seed} {digest} {number}".encode()
        # Python promises that `random()` gives the same numbers in every version, for such a seed.
        chance = random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big"))
        return map_texts(example, lambda text: self._change(text, chance.random), CHANGED_ROLES)

    def _change(self, text: str, draw: Callable[[], float]) -> str:
        if self.synonyms:
            text = replace_words(text, self.synonyms, draw)
        if self.swap:
            text = swap_spans(text, self.swap, draw)
        return delete_span(text, self.delete, draw) if self.delete else text


def find_change(section: AugmentSection) -> tuple[Change | None, list[str]]:
    """Find what is to be changed in copies, or nothing, and every problem of the settings."""
    if section.copies == 0:
        return None, []
    problems: list[str] = []
    synonyms = None
    if section.synonyms is not None:
        synonyms, problems = read_synonyms(section.synonyms)
    elif not (section.delete or section.swap):
        problems.append(
            f"--data.clean.augment.copies={section.copies}: nothing is set that would tell a copy "
            "from its row; set --data.clean.augment.delete, .swap or .synonyms, or 0 copies"
        )
    return Change(section.delete, section.swap, synonyms), problems


def delete_span(text: str, share: float, draw: Callable[[], float]) -> str:
    """Delete neighbouring words, this share of all but at least one, and one gap beside each.

    A text of a single word stays as it is.

    Args:
        text: Words and white space.
        share: Of the words, in (0, 1).
        draw: Gives numbers evenly distributed in [0, 1).
    """
    pieces, places = _split_words(text)
    if len(places) < 2:  # noqa: PLR2004
        return text
    count = min(max(1, round(share * len(places))), len(places) - 1)
    first = int(draw() * (len(places) - count + 1))
    if first + count < len(places):
        begin, end = places[first], places[first + count]
    else:
        begin, end = places[first - 1] + 1, places[-1] + 1
    return "".join(pieces[:begin] + pieces[end:])


def swap_spans(text: str, share: float, draw: Callable[[], float]) -> str:
    """Let two spans of as many words change places; white space stays where it is.

    Args:
        text: Words and white space; a single word stays as it is.
        share: Of the words in both spans together, in (0, 1); at least one word each.
        draw: Gives numbers evenly distributed in [0, 1).
    """
    pieces, places = _split_words(text)
    if len(places) < 2:  # noqa: PLR2004
        return text
    count = min(max(1, round(share * len(places) / 2)), len(places) // 2)
    # Two different numbers of so many are two spans that do not overlap, each pair as likely.
    room = len(places) - 2 * count + 2
    low = int(draw() * room)
    high = int(draw() * (room - 1))
    low, high = (low, high + 1) if high >= low else (high, low)
    for offset in range(count):
        one, other = places[low + offset], places[high - 1 + count + offset]
        pieces[one], pieces[other] = pieces[other], pieces[one]
    return "".join(pieces)


def replace_words(text: str, synonyms: Synonyms, draw: Callable[[], float]) -> str:
    """Let each word of the table stay or become one of its synonyms, all equally likely.

    A word in capitals, or with a first capital, passes that on.
    """

    def choose(match: re.Match[str]) -> str:
        word = match[0]
        others = synonyms.get(word.casefold())
        if others is None:
            return word
        choice = int(draw() * (len(others) + 1))
        return word if choice == len(others) else _copy_capitals(word, others[choice])

    return _PLAIN_WORD.sub(choose, text)


def read_synonyms(path: str) -> tuple[Synonyms, list[str]]:
    """Read a JSON object of lists of words.

    Returns:
        The table, and what is wrong with the file, ready to be shown.
    """
    flag = f"--data.clean.augment.synonyms={path}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, [f"{flag}: there is no such file; give the path of a JSON file"]
    except OSError as error:
        return {}, [f"{flag}: cannot be read ({error.strerror}); give the path of a JSON file"]
    except ValueError as error:
        return {}, [f"{flag}: not JSON in UTF-8 ({error}); repair the file"]
    if not isinstance(content, dict) or not content:
        example = '{"big": ["large", "great"]}'
        return {}, [f"{flag}: has to hold an object of lists like {example}; rewrite the file"]
    problems: list[str] = []
    table: dict[str, tuple[str, ...]] = {}
    for word, others in content.items():
        problem = _find_problem(word, others)
        if problem:
            problems.append(f"{flag}: {word!r:.60}: {problem}")
        else:
            folded = word.casefold()
            table[folded] = (*table.get(folded, ()), *others)
    if len(problems) > _MAX_PROBLEMS:
        rest = len(problems) - _MAX_PROBLEMS
        problems[_MAX_PROBLEMS:] = [f"{flag}: {rest} more words are not as they have to be"]
    return table, problems


def _find_problem(word: str, others: object) -> str | None:
    if not _PLAIN_WORD.fullmatch(word):
        return "has to be one word of letters and digits; remove it"
    if not isinstance(others, list) or not others:
        return f"has to have a list of words, not {others!r:.60}; remove it or give it one"
    wrong = [other for other in others if not isinstance(other, str) or not other.strip()]
    if wrong:
        return f"what stands in its place has to be text, not {wrong[0]!r:.60}; remove that"
    return None


def _split_words(text: str) -> tuple[list[str], list[int]]:
    """Split into words and white space, and tell where in the list the words are."""
    pieces = _WHITE_SPACE.split(text)
    # Every second piece is white space; the first and the last are empty where it is at an end.
    return pieces, [place for place in range(0, len(pieces), 2) if pieces[place]]


def _copy_capitals(word: str, other: str) -> str:
    if word.isupper() and len(word) > 1:
        return other.upper()
    if word[:1].isupper():
        return other[:1].upper() + other[1:]
    return other
