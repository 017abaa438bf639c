import pytest

from bigft.data.sources.derived.sentences import (
    find_paragraphs,
    find_sentence_words,
    split_first_sentence,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Open the file\nfor us.  Then close it.", ("Open the file for us.", "Then close it.")),
        ("Open it, e.g. a.txt, a.k.a. A\n\nMore.", ("Open it, e.g. a.txt, a.k.a. A", "More.")),
        ("Do a b ... and so on. More.", ("Do a b ... and so on.", "More.")),
        ('Write "to the file."  Done.', ('Write "to the file."', "Done.")),
        ("Return os.path of it? Yes", ("Return os.path of it?", "Yes")),
        ("Return all of it", ("Return all of it", "")),
        ("open(file) -> object\n\nOpen it.", None),
        ("lower case begins here.", None),
        ("One.\n\nTwo three four five.", None),
        ("", None),
    ],
)
def test_the_first_sentence_is_split_off(text: str, expected: tuple[str, str] | None) -> None:
    assert split_first_sentence(text) == expected


def test_paragraphs_are_prose() -> None:
    prose = "This paragraph has enough characters\nto count as one."
    code = "    >>> indented code of enough characters, as in examples"
    heading = "Short"
    listed = "- a list of enough characters to be counted as a paragraph"
    text = "\n\n".join([prose, code, heading, listed, f"{prose} Again."])
    line = prose.replace("\n", " ")
    assert list(find_paragraphs(text)) == [line, f"{line} Again."]


def test_words_are_found_sentence_by_sentence() -> None:
    text = "Don't use x1_y2. 3 + 4.\n\nSee e.g. it"
    assert find_sentence_words(text) == [["Don't", "use", "x", "y"], ["See", "e", "g", "it"]]
