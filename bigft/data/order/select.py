"""Which rows a run uses and which of them share a sequence, kept in the cache.

<cache>/plans/<digest>/
  train_rows.npy, train_starts.npy   sequences of an epoch; of weighted parts, the rows of each part
  first_rows.npy, first_starts.npy   of weighted parts, the sequences of the first epoch
  eval_rows.npy, eval_starts.npy     sequences to evaluate on
  info.json                          what was left out
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bigft.data.cache import default_cache_dir, write_once
from bigft.data.clean.duplicates import find_exact_duplicates, find_near_duplicates
from bigft.data.example import find_copies, find_originals
from bigft.data.order.pack import Bins, compute_utilisation
from bigft.data.order.plan import EpisodePlan, FixedPlan, MixedPlan, Plan, pack_rows
from bigft.data.order.split import Split, split_by_digest
from bigft.data.section import DataSection
from bigft.data.store.rows import Rows
from bigft.data.store.store import compute_store_digest
from bigft.errors import DataError

_VERSION = "2"
"""Part of every digest; to be raised whenever the same rows give other sequences."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SelectionInfo:
    """What was counted while rows were chosen."""

    duplicate_rows: int
    """Rows that say the same as an earlier one, whatever became of them."""

    dropped_duplicates: int
    train_rows: int
    eval_rows: int
    test_rows: int
    digest: str
    """Of everything that the order of the data follows from."""


@dataclass(frozen=True)
class Selection:
    """What is trained and evaluated on."""

    train: Bins
    """Sequences of an epoch; of weighted parts, the rows of each part instead."""

    evaluation: Bins
    weights: tuple[float, ...] | None
    """Shares of the parts; None: every row once per epoch."""

    info: SelectionInfo
    first: Bins
    """Sequences of the first epoch."""

    def build_plan(self, rows: Rows, section: DataSection, *, seed: int, episode: int = 0) -> Plan:
        """Build the sequences of every epoch.

        Args:
            rows: All rows of `--data`.
            section: Settings of the data.
            seed: Decides what is drawn.
            episode: Sequences of one part after the other; 0: parts are mixed. They have to have
                been selected apart.
        """
        if episode:
            assert self.weights is not None, "they have been selected apart"
            pack = partial(_pack, rows, section)
            return EpisodePlan(list(map(pack, self.train)), self.weights, length=episode, seed=seed)
        if self.weights is None:
            return FixedPlan(self.train)
        return _mix(self.train, rows, self.weights, section, seed=seed, first=self.first)


def open_selection(
    train: Rows,
    evaluation: Rows,
    weights: Sequence[float | None],
    section: DataSection,
    *,
    seed: int,
    apart: bool = False,
) -> Selection:
    """Choose and pack the rows, unless that was done before for the same rows.

    Args:
        train: All rows of `--data`.
        evaluation: All rows of `--eval_data`; the same object as `train` without it.
        weights: Of the parts of `--data`; all None: every row once per epoch.
        section: Settings of the data.
        seed: Decides what weighted parts contribute to an epoch.
        apart: Whether parts are kept apart, as weighted ones are.

    Raises:
        DataError: No row is left to train on.
    """
    shares = _resolve_weights(weights, apart=apart)
    settings = section.model_dump(
        include={"max_length", "packing", "eval_fraction", "clean"}, mode="json"
    )
    contents = [[store.info.content for store in rows.stores] for rows in (train, evaluation)]
    parts = [_VERSION, json.dumps([settings, contents, shares, seed if shares else 0])]
    digest = compute_store_digest([*parts, str(train is evaluation)])
    folder = default_cache_dir(section.loading.cache_dir) / "plans" / digest
    if not folder.is_dir():
        write_once(folder, partial(_write, train, evaluation, shares, section, digest, seed))
    return _read(folder, shares)


def select_all(rows: Rows, section: DataSection) -> Bins:
    """Pack every row that is not a changed copy."""
    numbers = np.nonzero(~find_copies(rows.digests))[0]
    return pack_rows(numbers, rows.lengths, section.packing, section.max_length)


def describe_selection(
    selection: Selection, bins: Bins, rows: Rows, max_length: int
) -> dict[str, Any]:
    """Count the sequences of the first epoch and of an evaluation.

    Args:
        selection: What was chosen.
        bins: Sequences of the first epoch.
        rows: The rows that `bins` names.
        max_length: Tokens per sequence.
    """
    lengths = rows.lengths[bins.rows]
    return {
        **asdict(selection.info),
        "packing_utilisation": compute_utilisation(lengths, len(bins), max_length),
        "train_sequences": len(bins),
        "eval_sequences": len(selection.evaluation),
    }


def _resolve_weights(
    weights: Sequence[float | None], *, apart: bool = False
) -> tuple[float, ...] | None:
    if all(weight is None for weight in weights) and not apart:
        return None
    return tuple(1.0 if weight is None else weight for weight in weights)


def _write(
    train: Rows,
    evaluation: Rows,
    weights: tuple[float, ...] | None,
    section: DataSection,
    digest: str,
    seed: int,
    folder: Path,
) -> None:
    split, duplicates, dropped = _choose(train, evaluation, section)
    pack = partial(pack_rows, packing=section.packing, max_length=section.max_length)
    if weights is None:
        bins = pack(split.train, train.lengths)
    else:
        part = train.find_part(split.train)
        starts = np.searchsorted(part, np.arange(len(weights) + 1))
        bins = Bins(split.train, starts)
        if empty := [train.names[n] for n, rows in enumerate(bins) if not len(rows)]:
            raise DataError(
                f"--data: no row of {' and '.join(empty)} is left to be weighted: all are held out"
                " or left out as duplicates; give more of it, lower --data.eval_fraction and"
                " --data.clean.test_fraction, or leave it away"
            )
    if not len(split.train):
        raise DataError(
            "--data: no row is left to train on; lower --data.eval_fraction and"
            " --data.clean.test_fraction, or give more data"
        )
    held_out = pack(split.evaluation, evaluation.lengths)
    info = SelectionInfo(
        duplicates, dropped, len(split.train), len(split.evaluation), len(split.test), digest
    )
    chosen = {"train": bins, "eval": held_out}
    if weights is not None:
        chosen["first"] = _mix(bins, train, weights, section, seed=seed).bins(0)
    for name, found in chosen.items():
        np.save(folder / f"{name}_rows.npy", found.rows)
        np.save(folder / f"{name}_starts.npy", found.starts)
    (folder / "info.json").write_text(json.dumps(asdict(info), indent=1))


def _mix(
    parts: Bins,
    rows: Rows,
    weights: tuple[float, ...],
    section: DataSection,
    *,
    seed: int,
    first: Bins | None = None,
) -> MixedPlan:
    pack = partial(_pack, rows, section)
    return MixedPlan(list(parts), rows.lengths, weights, pack, seed=seed, first=first)


def _pack(rows: Rows, section: DataSection, numbers: Numbers) -> Bins:
    return pack_rows(numbers, rows.lengths, section.packing, section.max_length)


def _choose(train: Rows, evaluation: Rows, section: DataSection) -> tuple[Split, int, int]:
    """Choose the rows of each side; count repeated rows, and those that are left out as such."""
    clean = section.clean
    repeated = _find_repeated(train)
    dropped = np.zeros(len(train), dtype=np.bool_)
    if clean.duplicates != "keep":
        dropped |= repeated
    if clean.duplicates == "drop_near":
        dropped |= _find_near(train, dropped, clean.similarity)
    has_own = train is not evaluation
    eval_fraction = 0.0 if has_own else section.eval_fraction
    split = split_by_digest(train.digests, eval_fraction, clean.test_fraction)
    sides = (split.train, split.evaluation, split.test)
    kept = Split(*(rows[~dropped[rows]] for rows in sides))
    if has_own:
        kept = replace(kept, evaluation=np.nonzero(~find_copies(evaluation.digests))[0])
    return kept, int(repeated.sum()), int(dropped.sum())


def _find_repeated(rows: Rows) -> npt.NDArray[np.bool_]:
    # The pieces of one text share its digest; an odd factor keeps their keys apart.
    keys = rows.digests + rows.pieces.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return find_exact_duplicates(keys)


def _find_near(
    rows: Rows, repeated: npt.NDArray[np.bool_], similarity: float
) -> npt.NDArray[np.bool_]:
    """Find rows of examples that nearly say the same as an earlier one, all their pieces too."""
    firsts = np.nonzero(~repeated & (rows.pieces == 0) & ~find_copies(rows.digests))[0]
    near = firsts[find_near_duplicates(rows.load_signatures()[firsts], similarity)]
    examples = find_originals(rows.digests)
    return np.isin(examples, examples[near])


def _read(folder: Path, weights: tuple[float, ...] | None) -> Selection:
    try:
        names = ("train", "eval", "train" if weights is None else "first")
        train, evaluation, first = (
            Bins(*(np.load(folder / f"{name}_{part}.npy", "r") for part in ("rows", "starts")))
            for name in names
        )
        info = SelectionInfo(**json.loads((folder / "info.json").read_text()))
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(
            f"the plan of the data in {folder} is damaged ({error}); delete this folder, and it is"
            " made again"
        ) from error
    return Selection(train, evaluation, weights, info, first)
