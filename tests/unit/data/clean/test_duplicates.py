import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.clean.duplicates import (
    SIGNATURE_SIZE,
    compute_signature,
    estimate_similarity,
    find_exact_duplicates,
    find_near_duplicates,
)
from bigft.data.example import Conversation, Labelled, PromptAnswer, Text

WORDS = [f"w{n}" for n in range(5000)]
EDITS = [0, 1, 1, 2, 2, 3, 4, 6, 9, 14]
Runs = frozenset[tuple[str, ...]]


def find_runs(text: str) -> Runs:
    words = re.findall(r"\w+", text.casefold())
    length = min(5, len(words))
    return frozenset(tuple(words[n : n + length]) for n in range(len(words) - length + 1))


def compute_jaccard(one: Runs, other: Runs) -> float:
    return len(one & other) / len(one | other)


def make_text(draw: random.Random, words: int = 120) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def edit(text: str, edits: int, draw: random.Random) -> str:
    words = text.split()
    for _ in range(edits):
        place = draw.randrange(len(words))
        kind = draw.randrange(3)
        if kind == 0:
            words[place] = draw.choice(WORDS)
        elif kind == 1:
            words.insert(place, draw.choice(WORDS))
        else:
            del words[place]
    return " ".join(words)


def sign(texts: list[str]) -> npt.NDArray[np.uint32]:
    return np.stack([compute_signature(Text(text)) for text in texts])


@dataclass(frozen=True)
class Corpus:
    truth: npt.NDArray[np.float64]
    """`(600, 600)`, the Jaccard index of each row with each earlier one; 0 elsewhere."""

    signatures: npt.NDArray[np.uint32]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """600 texts, half of them copies of an earlier one with 0 to 14 edits in random places."""
    draw = random.Random(0)
    texts: list[str] = []
    for _ in range(600):
        if texts and draw.random() < 0.5:
            texts.append(edit(draw.choice(texts), draw.choice(EDITS), draw))
        else:
            texts.append(make_text(draw))
    runs = [find_runs(text) for text in texts]
    truth = np.zeros((600, 600))
    for row in range(600):
        truth[row, :row] = [compute_jaccard(runs[row], earlier) for earlier in runs[:row]]
    return Corpus(truth, sign(texts))


def test_the_estimate_has_the_error_that_theory_gives(corpus: Corpus) -> None:
    rows, others = np.nonzero(corpus.truth > 0.1)
    truth = corpus.truth[rows, others]
    estimates = (corpus.signatures[rows] == corpus.signatures[others]).mean(axis=1)
    assert len(truth) > 300
    # Pairs share texts, so they are not independent; a biased or weak hash is far outside.
    assert abs(np.mean(estimates - truth)) < 0.02
    expected = np.mean(truth * (1 - truth)) / SIGNATURE_SIZE
    assert np.mean(np.square(estimates - truth)) < 1.5 * expected


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_marked_rows_are_those_with_a_similar_earlier_row(
    corpus: Corpus, similarity: float
) -> None:
    """By true Jaccard: recall of 0.97 well above the threshold, precision of 0.98 well below.

    Well above and well below are 2.5 standard errors of the estimate.
    """
    marked = find_near_duplicates(corpus.signatures, similarity)
    margin = 2.5 * np.sqrt(similarity * (1 - similarity) / SIGNATURE_SIZE)
    nearest = np.where(marked, 0, corpus.truth).max(axis=1)
    clear = nearest >= similarity + margin
    assert clear.sum() > 20
    assert (marked & clear).sum() >= 0.97 * clear.sum()
    assert (marked & (nearest < similarity - margin)).sum() <= 0.02 * marked.sum()


def test_texts_without_copies_are_all_kept() -> None:
    draw = random.Random(1)
    signatures = sign([make_text(draw) for _ in range(500)])
    assert not find_near_duplicates(signatures, 0.5).any()


@pytest.mark.parametrize("similarity", [0.05, 0.3, 0.8, 1.0])
def test_every_row_is_compared_as_a_slow_search_does(similarity: float) -> None:
    """Against all pairs of signatures; a pair that no band shows is rare above the threshold."""
    draw = np.random.default_rng(2)
    signatures = draw.integers(0, 2**32, (400, SIGNATURE_SIZE), dtype=np.uint32)
    for row in range(1, 400):
        if row % 2:
            other = draw.integers(0, row)
            copied = draw.random(SIGNATURE_SIZE) < draw.choice([0.0, 0.1, 0.5, 0.9, 1.0])
            signatures[row, copied] = signatures[other, copied]
    marked = find_near_duplicates(signatures, similarity)
    disagreements = 0
    for row in range(400):
        kept = np.flatnonzero(~marked[:row])
        estimates = estimate_similarity(signatures[row], signatures[kept])
        disagreements += bool(marked[row]) != bool((estimates >= similarity).any())
    assert disagreements <= 4
    assert marked.sum() >= (30 if similarity > 0.5 else 80)


def test_a_chain_of_edits_is_cut_where_it_left_what_is_kept() -> None:
    """Each row is close to the one before; only the kept ones count."""
    draw = random.Random(4)
    texts = [make_text(draw, 400)]
    for _ in range(30):
        texts.append(edit(texts[-1], 3, draw))
    marked = find_near_duplicates(sign(texts), 0.8)
    runs = [find_runs(text) for text in texts]
    assert not marked[0]
    assert marked[1]
    assert 3 <= (~marked).sum() <= 15
    last_kept = 0
    for row in range(1, len(texts)):
        if marked[row]:
            assert compute_jaccard(runs[row], runs[last_kept]) > 0.65
        else:
            last_kept = row


def test_the_first_of_equal_rows_is_kept_however_many_there_are() -> None:
    draw = random.Random(5)
    one, other = make_text(draw), make_text(draw)
    marked = find_near_duplicates(sign([one, other] * 300), 0.9)
    assert marked.tolist() == [False, False] + [True] * 598


def test_rows_that_share_a_template_are_found_among_very_many() -> None:
    """More rows per band than one row is compared with: the latest ones still count."""
    draw = np.random.default_rng(6)
    template = draw.integers(0, 2**32, SIGNATURE_SIZE, dtype=np.uint32)
    signatures = draw.integers(0, 2**32, (2000, SIGNATURE_SIZE), dtype=np.uint32)
    signatures[:, :20] = template[:20]
    copies = np.arange(1, 2000, 10)
    signatures[copies] = signatures[copies - 1]
    signatures[copies, 63] += np.uint32(1)
    marked = find_near_duplicates(signatures, 0.8)
    assert np.flatnonzero(marked).tolist() == copies.tolist()


def test_a_memory_map_gives_the_same(corpus: Corpus, tmp_path: Path) -> None:
    signatures = corpus.signatures
    np.save(tmp_path / "signatures.npy", signatures)
    mapped = np.load(tmp_path / "signatures.npy", mmap_mode="r")
    assert (find_near_duplicates(mapped, 0.7) == find_near_duplicates(signatures, 0.7)).all()


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_rows_are_no_trouble(rows: int) -> None:
    signatures = np.zeros((rows, SIGNATURE_SIZE), dtype=np.uint32)
    assert find_near_duplicates(signatures, 0.8).tolist() == [False] * rows
    assert find_exact_duplicates(np.zeros(rows, dtype=np.uint64)).tolist() == [False] * rows


def test_a_signature_has_its_shape_and_never_changes() -> None:
    signature = compute_signature(Text("The quick brown fox jumps over the lazy dog."))
    assert signature.shape == (SIGNATURE_SIZE,)
    assert signature.dtype == np.uint32
    # Written down: signatures are kept in the cache.
    assert signature[:2].tolist() == [403428536, 65334731]


def test_case_signs_and_white_space_do_not_count() -> None:
    one = compute_signature(Text("A dog, a cat; and STRASSE"))
    assert (one == compute_signature(Text("a  DOG a\ncat and: stra\u00dfe!"))).all()
    assert (one != compute_signature(Text("a cat a dog and strasse"))).any()


def test_short_texts_are_equal_only_when_all_words_are() -> None:
    texts = ["", "a", "b", "a b", "b a", "a b c d", "a b c e", "\U0001f44d", "\U0001f389"]
    signatures = sign(texts)
    assert len({row.tobytes() for row in signatures}) == len(texts)
    assert not find_near_duplicates(signatures, 0.3).any()


def test_scripts_without_spaces_are_compared_by_character() -> None:
    draw = random.Random(7)
    text = "".join(chr(draw.randrange(0x4E00, 0x9FFF)) for _ in range(200))
    other = text[:100] + "\u4e00" + text[101:]
    assert estimate_similarity(sign([text])[0], sign([other]))[0] > 0.8
    assert find_near_duplicates(sign([text, other, text[::-1]]), 0.8).tolist() == [
        False,
        True,
        False,
    ]


def test_all_speakers_labels_and_calls_count() -> None:
    def ask(answer: str, **more: object) -> Conversation:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer, **more}]
        return Conversation(turns)

    examples = [
        PromptAnswer("q", "a"),
        PromptAnswer("q", "b"),
        ask("c"),
        ask("d"),
        ask("", tool_calls=[{"function": {"name": "f"}}]),
        ask("", tool_calls=[{"function": {"name": "g"}}]),
        Labelled("q", 0),
        Labelled("q", 1),
        Labelled("q", 1, "a"),
    ]
    assert len({compute_signature(example).tobytes() for example in examples}) == len(examples)
    same = [
        compute_signature(PromptAnswer("a b", "c d e f")),
        compute_signature(Text("a b c d e f")),
    ]
    assert (same[0] == same[1]).all()


def test_a_long_text_is_signed_in_pieces_as_if_it_were_one() -> None:
    draw = random.Random(8)
    words = draw.choices(WORDS, k=20_000)
    whole = sign([" ".join(words)])[0]
    # The least values of overlapping halves are those of the whole.
    halves = sign([" ".join(words[:10_004]), " ".join(words[10_000:])])
    assert (whole == halves.min(axis=0)).all()


@given(st.lists(st.integers(0, 5) | st.integers(0, 2**64 - 1), max_size=60))
def test_exact_duplicates_are_all_but_the_first(digests: list[int]) -> None:
    expected = [digest in digests[:row] for row, digest in enumerate(digests)]
    assert find_exact_duplicates(np.array(digests, dtype=np.uint64)).tolist() == expected


@pytest.mark.nightly
def test_near_duplicates_among_very_many_rows_are_found_in_time() -> None:
    draw = np.random.default_rng(9)
    signatures = draw.integers(0, 2**32, (1_000_000, SIGNATURE_SIZE), dtype=np.uint32)
    copies = np.arange(1, 1_000_000, 3)
    signatures[copies, :60] = signatures[copies - 1, :60]
    assert np.flatnonzero(find_near_duplicates(signatures, 0.8)).tolist() == copies.tolist()
