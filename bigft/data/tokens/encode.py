"""Many texts to tokens with few calls of the tokenizer's own library, whose threads share them.

The result is what `tokenizer(text)` gives for each text alone: nothing is cut off or padded, and
special tokens are added as the tokenizer adds them.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = npt.NDArray[np.int32]

# The library holds well over 100 bytes per token while it works, so this many characters at once
# stay below a few hundred MB.
_MAX_CHARACTERS = 1 << 22

_MAX_PIECE = 1 << 20
"""Characters; longer texts are cut where no token can span the cut."""

# Pre-tokenizers of byte-level BPE put a single space into the word behind it, and never join a line
# break with a letter behind it; in both places a cut changes nothing.
_CUT = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=[^\s]\n)(?=[^\W\d_])")
_CUT_WINDOW = 1 << 12
_SAMPLE = ("Some words", " and then\n", "another line. Then", " more")
_WORD_OVER_SPACE = re.compile("[A-Za-z][ \u0120\u2581\u010a][A-Za-z]")


def encode_texts(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, special: bool
) -> list[TokenIds]:
    """Encode each text.

    Texts above a million characters are cut at white space first, if the tokenizer is of a kind for
    which this gives the same tokens.

    Args:
        texts: Valid Unicode, each.
        tokenizer: Fast, or slow (one call per text).
        special: Whether the tokenizer adds its special tokens (BOS, EOS).

    Returns:
        `(T,)` per text.

    Memory: a few hundred MB beside the result (198 for a text of 12 MB, which takes 1.4 GB whole),
    more if a single text has no place to cut at.
    """
    if not tokenizer.is_fast:
        ids = [tokenizer(t, add_special_tokens=special, verbose=False)["input_ids"] for t in texts]
        return [np.array(one, dtype=np.int32) for one in ids]
    backend = _prepare(tokenizer)
    if max(map(len, texts), default=0) <= _MAX_PIECE:
        return _encode_whole(backend, texts, special)
    return _encode_cut(backend, texts, special)


def encode_placed(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[TokenIds, Any]]:
    """Encode each text, without special tokens, and keep where its tokens stand in it.

    Args:
        texts: Valid Unicode, each.
        tokenizer: A fast one.

    Yields:
        Per text: `(T,)` tokens, and the library's `Encoding`, which is best let go of soon.

    Memory: a few hundred MB beside the result, more for a longer single text.
    """
    backend = _prepare(tokenizer)
    for group in _group(texts):
        for found in backend.encode_batch(group, add_special_tokens=False):
            yield _build_ids(found.ids), found


def _prepare(tokenizer: "PreTrainedTokenizerBase") -> Any:
    # The state that `tokenizer(text)` leaves: a tokenizer.json may ask for cutting and padding.
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _encode_whole(backend: Any, texts: Sequence[str], special: bool) -> list[TokenIds]:
    return [
        _build_ids(found.ids)
        for group in _group(texts)
        for found in backend.encode_batch_fast(group, add_special_tokens=special)
    ]


def _group(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > _MAX_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _build_ids(ids: list[int]) -> TokenIds:
    # Through `array`: numpy alone takes twice as long for a list of this size.
    return np.frombuffer(array("i", ids), dtype=np.int32)


# Long texts.


def _encode_cut(backend: Any, texts: Sequence[str], special: bool) -> list[TokenIds]:
    added = _find_added_tokens(backend) if special else ([], [])
    if added is None or not _allows_cuts(backend):
        return _encode_whole(backend, texts, special)
    pieces = [list(_cut(text)) for text in texts]
    encoded = iter(_encode_whole(backend, [p for group in pieces for p in group], special=False))
    before, behind = (np.array(tokens, dtype=np.int32) for tokens in added)
    joined = [[before, *(next(encoded) for _ in group), behind] for group in pieces]
    return [np.concatenate(parts) for parts in joined]


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _MAX_PIECE:
        end = _find_cut(text, start, start + _MAX_PIECE)
        if end is None:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def _find_cut(text: str, start: int, limit: int) -> int | None:
    """Find the last place before `limit` that a cut cannot be seen in, or the next one behind."""
    last = None
    for found in _CUT.finditer(text, max(start + 1, limit - _CUT_WINDOW), limit):
        last = found.start()
    if last is None:
        found_behind = _CUT.search(text, limit)
        last = found_behind.start() if found_behind else None
    return last


def _find_added_tokens(backend: Any) -> tuple[list[int], list[int]] | None:
    """Find what stands before and behind the tokens of any text."""
    plain = backend.encode(_SAMPLE[0], add_special_tokens=False).ids
    full = backend.encode(_SAMPLE[0], add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return None


def _allows_cuts(backend: Any) -> bool:
    """Whether a cut between two words leaves the tokens as they are.

    It does not where the tokenizer puts a space before each text, or has tokens of several words.
    """
    whole = backend.encode("".join(_SAMPLE), add_special_tokens=False).ids
    parts = [backend.encode(part, add_special_tokens=False).ids for part in _SAMPLE]
    if whole != [token for part in parts for token in part]:
        return False
    return not any(_WORD_OVER_SPACE.search(entry) for entry in backend.get_vocab())
