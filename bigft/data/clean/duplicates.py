"""Repeated examples, and examples with nearly the same words.

Near duplicates are found by MinHash (Broder 1997, "On the resemblance and containment of
documents"): of 64 hash functions over the runs of five words of a text, each gives its least value,
and two texts share a value with a probability that is the Jaccard index of their sets of runs.
Comparing every pair is avoided by banding (Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", chapter 3): only rows that agree in a whole band of values are compared.

    signature  | 7 3 9 1 | 4 4 0 2 | 8 5 6 1 |    rows with an equal band are candidates;
    another    | 7 3 2 1 | 4 4 0 2 | 8 0 6 1 |    the share of equal values decides
"""

import hashlib
import json
import re
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from bigft.data.clean.parts import find_texts
from bigft.data.example import Conversation, Example, Labelled

SIGNATURE_SIZE = 64
"""Values per row. The standard error of an estimated index J is sqrt(J * (1 - J) / 64): 0.05 where
J is 0.8."""

Signatures = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
_Hashes = npt.NDArray[np.uint64]
_Rows = npt.NDArray[np.int64]
_Groups = npt.NDArray[np.int32] | npt.NDArray[np.int64]

_RUN = 5
# Pieces of a long text, so that it needs no more than 64 * 8,192 * 4 bytes at a time.
_MAX_RUNS = 8192
_CHUNK = 8192
_MAX_COMPARED = 128
_MIN_RECALL = 0.99

# Scripts that put no space between words (Thai, Lao, Khmer, kana, Han): each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def compute_signature(example: Example) -> Signatures:
    """Compute the MinHash signature of what an example says, whoever says it.

    Words are case-folded and count without punctuation. A label and the calls of tools count as
    words too, since rows that differ in them teach different things.

    Returns:
        `(64,)`; the same in every process and on every machine.

    Memory: 2 MiB beside the words, and a table of up to 131,072 words per process, about 25 MB.
    """
    words = _find_words(example)
    hashes = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    run_length = min(_RUN, len(words))
    runs = len(words) - run_length + 1
    factors = _draw_numbers("runs", _RUN)
    combined = hashes[:runs] * factors[0]
    for place in range(1, run_length):
        combined += hashes[place : place + runs] * factors[place]
    values = (_mix(combined) >> np.uint64(32)).astype(np.uint32)
    least = [_find_least(values[start : start + _MAX_RUNS]) for start in range(0, runs, _MAX_RUNS)]
    signature: Signatures = np.minimum.reduce(least)
    return signature


def estimate_similarity(one: Signatures, others: Signatures) -> npt.NDArray[np.float64]:
    """Estimate the Jaccard index of one row, `(64,)`, with others, `(rows, 64)`, as `(rows,)`."""
    share: npt.NDArray[np.float64] = np.count_nonzero(others == one, axis=1) / SIGNATURE_SIZE
    return share


def find_exact_duplicates(digests: npt.NDArray[np.uint64]) -> Mask:
    """Mark every row whose digest an earlier row has.

    Args:
        digests: `(rows,)`.

    Returns:
        `(rows,)`.

    Memory: 18 bytes per row.
    """
    marked = np.zeros(len(digests), dtype=np.bool_)
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    marked[order[1:][ordered[1:] == ordered[:-1]]] = True
    return marked


def find_near_duplicates(signatures: Signatures, similarity: float) -> Mask:
    """Mark every row that is a near duplicate of an earlier row that is not marked itself.

    A pair of exactly this estimated similarity is compared with a probability of at least 0.99, a
    more similar one almost surely; below a similarity of 0.07 of at least 1 - (1 - J)**64. A row
    is compared with no more than the 128 latest kept rows per band, so that the time stays bounded
    where very many rows share a template. The result depends on the order of rows and on nothing
    else.

    Args:
        signatures: `(rows, 64)`, maybe a memory map.
        similarity: Estimated Jaccard index from which on rows are near duplicates, in (0, 1].

    Returns:
        `(rows,)`.

    Memory: 60 bytes per row, and up to 10 per band for each row that shares one with another row;
    there are 12 bands at a similarity of 0.8, and 64 at 0.3.
    """
    every = np.arange(len(signatures), dtype=np.int64)
    # Equal signatures need no comparison: what holds for the first row holds for all.
    marked = find_exact_duplicates(_hash_band(signatures, every, 0, SIGNATURE_SIZE))
    firsts = np.flatnonzero(~marked)
    width = _choose_band_width(similarity)
    shared = _find_shared_bands(signatures, firsts, width)
    rows = firsts[shared != 0]
    kept = _KeptRows(_group_bands(signatures, rows, shared[shared != 0], width))
    for place, row in enumerate(rows.tolist()):
        earlier = rows[kept.find_candidates(place)]
        if len(earlier) and (
            estimate_similarity(signatures[row], signatures[earlier]).max() >= similarity
        ):
            marked[row] = True
        else:
            kept.add(place)
    return marked


class _KeptRows:
    """The kept rows so far, in one chain for each band that rows share, the latest first."""

    def __init__(self, groups: _Groups) -> None:
        self._groups = groups
        """`(rows, bands)`: rows with the same number share the band; -1 with no other row."""
        self._latest = np.full(groups.max(initial=-1) + 1, -1, dtype=groups.dtype)
        self._before = np.full_like(groups, -1)

    def find_candidates(self, row: int) -> list[int]:
        """Find the latest kept rows that share a band with this row, in order."""
        shared = np.flatnonzero(self._groups[row] >= 0)
        found: set[int] = set()
        for band, latest in zip(shared, self._latest[self._groups[row, shared]], strict=True):
            other, left = int(latest), _MAX_COMPARED
            while other >= 0 and left:
                found.add(other)
                other, left = int(self._before[other, band]), left - 1
        return sorted(found)

    def add(self, row: int) -> None:
        """Enter a row into the chains of its bands."""
        shared = np.flatnonzero(self._groups[row] >= 0)
        groups = self._groups[row, shared]
        self._before[row, shared] = self._latest[groups]
        self._latest[groups] = row


def _group_bands(signatures: Signatures, rows: _Rows, shared: _Hashes, width: int) -> _Groups:
    """Number the groups of rows that share a band: `(rows, bands)`, -1 where there is none."""
    bands = SIGNATURE_SIZE // width
    dtype = np.int32 if len(rows) * bands < 1 << 31 else np.int64
    groups = np.full((len(rows), bands), -1, dtype=dtype)
    start = 0
    for band in range(bands):
        members = np.flatnonzero((shared >> np.uint64(band)) & np.uint64(1))
        keys = _hash_band(signatures, rows[members], band, width)
        distinct, numbers = np.unique(keys, return_inverse=True)
        groups[members, band] = numbers + start
        start += len(distinct)
    return groups


def _find_shared_bands(signatures: Signatures, rows: _Rows, width: int) -> _Hashes:
    """Find for each of these rows which bands it shares with another, as bits of a number."""
    shared = np.zeros(len(rows), dtype=np.uint64)
    for band in range(SIGNATURE_SIZE // width):
        keys = _hash_band(signatures, rows, band, width)
        ordered = np.sort(keys)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        del ordered
        if len(repeated):
            places = np.minimum(np.searchsorted(repeated, keys), len(repeated) - 1)
            shared |= (repeated[places] == keys).astype(np.uint64) << np.uint64(band)
    return shared


def _choose_band_width(similarity: float) -> int:
    """Choose the widest bands, which give the fewest candidates, that find what they have to."""
    for width in range(SIGNATURE_SIZE, 1, -1):
        if 1 - (1 - similarity**width) ** (SIGNATURE_SIZE // width) >= _MIN_RECALL:
            return width
    return 1


def _hash_band(signatures: Signatures, rows: _Rows, band: int, width: int) -> _Hashes:
    """Hash the values of one band of each row; equal bands of different numbers differ."""
    columns = slice(band * width, (band + 1) * width)
    factors = _draw_numbers("bands", SIGNATURE_SIZE)[columns]
    hashes = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = signatures[rows[part], columns].astype(np.uint64)
        hashes[part] = (values * factors).sum(axis=1, dtype=np.uint64)
    return _mix(hashes + factors[0])


def _find_words(example: Example) -> list[str]:
    text = "\n".join(find_texts(example)).casefold()
    words: list[str] = _WORD.findall(text)
    if isinstance(example, Labelled):
        words.append(f"label {example.label}")
    elif isinstance(example, Conversation):
        calls = [turn["tool_calls"] for turn in example.messages if turn.get("tool_calls")]
        if calls:
            words += _WORD.findall(json.dumps(calls, sort_keys=True, default=str))
    # Signs alone are no words, but have to tell rows apart.
    return words or [text.strip()]


@lru_cache(maxsize=1 << 17)
def _hash_word(word: str) -> int:
    # Python's own hash differs from process to process.
    content = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _find_least(values: npt.NDArray[np.uint32]) -> Signatures:
    """Find the least value of `(runs,)` under each of the 64 functions `a * x + b` mod 2**32.

    With an odd `a` each is a permutation of the 32-bit numbers; what they permute is random
    already.
    """
    factors = _draw_numbers("factors", SIGNATURE_SIZE).astype(np.uint32)[:, None]
    offsets = _draw_numbers("offsets", SIGNATURE_SIZE).astype(np.uint32)[:, None]
    least: Signatures = (values * factors + offsets).min(axis=1)
    return least


@cache
def _draw_numbers(purpose: str, count: int) -> _Hashes:
    """Draw odd 64-bit numbers, the same for ever."""
    content = b"".join(
        hashlib.blake2b(f"{purpose} {n}".encode(), digest_size=8).digest() for n in range(count)
    )
    return np.frombuffer(content, dtype="<u8").astype(np.uint64) | np.uint64(1)


def _mix(hashes: _Hashes) -> _Hashes:
    """Let every bit depend on every other (the finaliser of MurmurHash3, Appleby 2011)."""
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> np.uint64(33))
