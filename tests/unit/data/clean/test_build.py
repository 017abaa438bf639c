import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.clean.build import STEPS, Cleaner
from bigft.data.clean.section import AugmentSection, CleanSection
from bigft.data.example import Conversation, Example, Labelled, PromptAnswer, Text, compute_digest
from bigft.errors import ConfigError, DataError

EVERYTHING = CleanSection(
    strip=True,
    normalize="nfkc",
    empty="drop",
    keep_pattern="[^!]",
    drop_pattern="secret",
    mask=["email", "phone", "card"],
    augment=AugmentSection(copies=3, delete=0.2, swap=0.3),
)
loose_text = st.text(
    st.sampled_from(" \n\t\u00a0\u00a8\ufb01\u0301\u00e9ab@.-+0145(8)!"), max_size=40
) | st.text(max_size=20)
conversations = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": loose_text}
    ),
    min_size=1,
    max_size=4,
).map(Conversation)
examples = (
    st.builds(Text, loose_text)
    | st.builds(PromptAnswer, loose_text, loose_text)
    | st.builds(Labelled, loose_text, st.just("good"), st.none() | loose_text)
    | conversations
)


@given(examples)
def test_without_settings_an_example_is_the_same_object(example: Example) -> None:
    cleaner = Cleaner(CleanSection())
    assert cleaner.is_idle
    assert cleaner.clean(example) is example
    assert cleaner.augment(example, 1) == []
    assert set(cleaner.touched.values()) == {0}


@pytest.mark.parametrize(
    "section",
    [
        CleanSection(strip=True),
        CleanSection(normalize="nfc"),
        CleanSection(empty="drop"),
        CleanSection(keep_pattern="a"),
        CleanSection(drop_pattern="a"),
        CleanSection(mask=["card"]),
        CleanSection(augment=AugmentSection(copies=1, delete=0.1)),
    ],
)
def test_with_a_setting_it_is_not_idle(section: CleanSection) -> None:
    assert not Cleaner(section).is_idle


def test_settings_of_others_leave_it_idle() -> None:
    assert Cleaner(CleanSection(duplicates="drop_near", min_tokens=3, test_fraction=0.1)).is_idle


@given(examples)
def test_cleaning_twice_is_cleaning_once(example: Example) -> None:
    cleaner = Cleaner(EVERYTHING)
    once = cleaner.clean(example)
    if once is None:
        assert sum(cleaner.touched[name] for name in STEPS if name.startswith("dropped")) == 1
        return
    before = dict(cleaner.touched)
    assert cleaner.clean(once) is once
    assert cleaner.touched == before


def test_each_step_is_done_and_counted_by_row() -> None:
    cleaner = Cleaner(EVERYTHING)
    text = "  \ufb01ne a@b.com, c@d.org, 555-123-4567, 4111 1111 1111 1111 "
    assert cleaner.clean(Text(text)) == Text("fine [EMAIL], [EMAIL], [PHONE], [CARD]")
    assert cleaner.clean(PromptAnswer("what?", " 030 1234567")) == PromptAnswer("what?", " [PHONE]")
    assert cleaner.clean(Text("plain")) == Text("plain")
    assert cleaner.clean(Text(" \u00a0 ")) is None
    assert cleaner.clean(Text("!!!")) is None
    assert cleaner.clean(Text("the secret")) is None
    assert cleaner.touched == {
        "normalized": 2,
        "stripped": 2,
        "masked_email": 1,
        "masked_card": 1,
        "masked_phone": 2,
        "dropped_empty": 1,
        "dropped_by_keep_pattern": 1,
        "dropped_by_drop_pattern": 1,
        "augmented": 0,
    }


def test_empty_rows_are_the_readers_business_unless_they_are_to_be_dropped() -> None:
    assert Cleaner(CleanSection(strip=True)).clean(Text(" ")) == Text("")
    assert Cleaner(CleanSection(empty="drop")).clean(Text(" ")) is None


def test_copies_differ_from_the_row_and_from_each_other() -> None:
    cleaner = Cleaner(CleanSection(augment=AugmentSection(copies=5, swap=0.1)))
    assert cleaner.augment(Text("a b"), 1) == [Text("b a")]
    assert cleaner.augment(Text("a"), 1) == []
    assert cleaner.augment(Text("a a"), 1) == []
    many = cleaner.augment(Text("a b c d e f g h i j k l m n"), 1)
    assert 3 <= len(many) == len(set(many)) <= 5
    assert cleaner.touched["augmented"] == 2


def test_the_seed_decides_the_copies() -> None:
    example = Text(" ".join(map(str, range(50))))
    sections = [AugmentSection(copies=1, delete=0.1, seed=seed) for seed in (1, 1, 2)]
    copies = [Cleaner(CleanSection(augment=one)).augment(example, 1)[0] for one in sections]
    assert copies[0] == copies[1] != copies[2]


def test_the_copy_of_another_process_counts_anew_and_is_added() -> None:
    cleaner = Cleaner(EVERYTHING)
    cleaner.clean(Text(" a@b.com"))
    other: Cleaner = pickle.loads(pickle.dumps(cleaner))
    assert set(other.touched.values()) == {0}
    assert other.clean(Text(" a@b.com")) == Text("[EMAIL]")
    cleaner.add_touched(other.take_touched())
    assert set(other.touched.values()) == {0}
    cleaner.add_touched(other.take_touched())
    assert (cleaner.touched["stripped"], cleaner.touched["masked_email"]) == (2, 2)


def test_the_result_is_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "clean.py"
    synonyms = tmp_path / "synonyms.json"
    synonyms.write_text('{"big": ["large", "great"]}', encoding="utf-8")
    script.write_text(
        "import sys\n"
        "from bigft.data.clean.build import Cleaner\n"
        "from bigft.data.clean.duplicates import compute_signature\n"
        "from bigft.data.clean.section import AugmentSection, CleanSection\n"
        "from bigft.data.example import Text, compute_digest\n"
        "change = AugmentSection(copies=3, delete=0.2, swap=0.3, synonyms=sys.argv[1], seed=7)\n"
        "section = CleanSection(strip=True, mask=['phone', 'email'], augment=change)\n"
        "cleaner = Cleaner(section)\n"
        "example = cleaner.clean(Text(' a big dog, a@b.com, saw one big cat and 12 mice '))\n"
        "print(example, cleaner.augment(example, compute_digest(example)), cleaner.touched)\n"
        "print(compute_signature(example).tolist())\n",
        encoding="utf-8",
    )
    results = [
        subprocess.run(
            [sys.executable, str(script), str(synonyms)],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert results[0] == results[1]
    assert "[EMAIL]" in results[0]


def test_every_problem_is_told_at_once_with_its_flag(tmp_path: Path) -> None:
    section = CleanSection(
        keep_pattern="(",
        drop_pattern="*",
        augment=AugmentSection(copies=1, synonyms=str(tmp_path / "absent.json")),
    )
    with pytest.raises(ConfigError) as raised:
        Cleaner(section)
    text = str(raised.value)
    assert text.startswith("3 problems:")
    assert "--data.clean.keep_pattern=(: not a regular expression" in text
    assert "--data.clean.drop_pattern=*: not a regular expression" in text
    assert f"--data.clean.augment.synonyms={tmp_path}/absent.json: there is no such file" in text


def test_a_bad_file_alone_is_an_error_of_data_and_copies_of_nothing_one_of_settings(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "absent.json")
    with pytest.raises(DataError, match="there is no such file"):
        Cleaner(CleanSection(augment=AugmentSection(copies=1, synonyms=path)))
    with pytest.raises(ConfigError, match=r"augment\.copies=1"):
        Cleaner(CleanSection(augment=AugmentSection(copies=1)))


@given(examples)
def test_no_copy_of_a_cleaned_example_has_other_answers(example: Example) -> None:
    cleaner = Cleaner(EVERYTHING)
    for copy in cleaner.augment(example, compute_digest(example)):
        if isinstance(example, PromptAnswer):
            assert isinstance(copy, PromptAnswer)
            assert copy.answer == example.answer
        if isinstance(example, Conversation):
            assert isinstance(copy, Conversation)
            answers = [turn for turn in example.messages if turn["role"] == "assistant"]
            assert [turn for turn in copy.messages if turn["role"] == "assistant"] == answers
