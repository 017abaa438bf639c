"""Settings in, loaders out."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bigft.data.collate import collate_packed, collate_padded
from bigft.data.loader import Collate, EvalLoader, Loader
from bigft.data.pack import Bins, compute_utilisation, pack_best_fit, pack_none
from bigft.data.prepare import open_store, open_stores
from bigft.data.section import DataSection
from bigft.data.split import RowNumbers, split_by_digest
from bigft.data.store import TokenStore
from bigft.data.tokenize import find_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What training needs of the data."""

    train: Loader
    evaluation: EvalLoader | None
    """None when nothing is held out and `--eval_data` is absent."""

    info: dict[str, Any]
    """Counts for people and for `bigft data --json`."""


def build_data(  # noqa: PLR0913
    section: DataSection,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    rank: int,
    local_rank: int,
    world_size: int,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    eval_batch_size: int,
    seed: int,
    barrier: Callable[[], None],
) -> Data:
    """Build the loaders of a run; local rank 0 tokenises first, where that was not done before.

    A tokenizer without a chat template gets ChatML if there are conversations, so that the
    exported tokenizer has the template that was trained with.

    Args:
        section: Settings of the data.
        tokenizer: The same on every rank.
        rank: This rank in the data-parallel group.
        local_rank: This rank on its host.
        world_size: Ranks in the data-parallel group.
        micro_batch_size: Sequences per rank and micro-step.
        gradient_accumulation_steps: Micro-steps per step.
        eval_batch_size: Sequences per rank and evaluation batch.
        seed: Decides the order.
        barrier: Returns when every rank has called it.

    Raises:
        DataError: The data are missing, bad or empty; raised on every rank.

    Collective: all ranks; `barrier` is called once.
    """
    specs = [(section.train, "--data")]
    if section.eval is not None:
        specs.append((section.eval, "--eval_data"))
    stores = open_stores(specs, section, tokenizer, local_rank=local_rank, barrier=barrier)
    _set_chat_template(tokenizer, stores)
    train_part, eval_part = _divide(stores, section)
    collate = _choose_collate(section, tokenizer)
    train = Loader(
        train_part.store,
        train_part.bins,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        rank=rank,
        world_size=world_size,
        seed=seed,
        collate=collate,
    )
    evaluation = EvalLoader(
        eval_part.store,
        eval_part.bins,
        batch_size=eval_batch_size,
        rank=rank,
        world_size=world_size,
        collate=collate,
    )
    return Data(train, evaluation if eval_part.bins else None, _describe(train_part, eval_part))


def build_evaluation(
    section: DataSection,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    batch_size: int,
    flag: str = "--data",
) -> tuple[EvalLoader, dict[str, Any]]:
    """Build batches of everything in `section.train`, in one process, for scoring a model.

    Raises:
        DataError: The data are missing, bad or empty.
    """
    store = open_store(section.train, flag, section, tokenizer)
    _set_chat_template(tokenizer, [store])
    part = _pack(store, np.arange(len(store)), section)
    collate = _choose_collate(section, tokenizer)
    loader = EvalLoader(
        store, part.bins, batch_size=batch_size, rank=0, world_size=1, collate=collate
    )
    return loader, {**_describe_store(store), "packing_utilisation": part.utilisation}


@dataclass(frozen=True)
class _Part:
    """Some rows of a store, packed."""

    store: TokenStore
    rows: RowNumbers
    bins: Bins
    utilisation: float


def _divide(stores: list[TokenStore], section: DataSection) -> tuple[_Part, _Part]:
    store = stores[0]
    if section.eval is None:
        train_rows, eval_rows = split_by_digest(store.digests, section.eval_fraction)
    else:
        train_rows, eval_rows = np.arange(len(store)), np.arange(len(stores[1]))
    return _pack(store, train_rows, section), _pack(stores[-1], eval_rows, section)


def _pack(store: TokenStore, rows: RowNumbers, section: DataSection) -> _Part:
    lengths = store.lengths[rows]
    if section.packing == "none":
        bins = pack_none(lengths)
    else:
        bins = pack_best_fit(lengths, section.max_length)
    utilisation = compute_utilisation(lengths, len(bins), section.max_length)
    return _Part(store, rows, [rows[places] for places in bins], utilisation)


def _describe(train: _Part, evaluation: _Part) -> dict[str, Any]:
    return {
        **_describe_store(train.store),
        "digest": _digest_order(train),
        "packing_utilisation": train.utilisation,
        "train_rows": len(train.rows),
        "train_sequences": len(train.bins),
        "eval_rows": len(evaluation.rows),
        "eval_sequences": len(evaluation.bins),
    }


def _digest_order(part: _Part) -> str:
    """Digest what the order of the data follows from: the rows and how they are packed."""
    digest = hashlib.sha256(part.store.digests[part.rows].tobytes())
    # The same examples under another tokenizer or mask are other data.
    digest.update(part.store.lengths[part.rows].tobytes())
    digest.update(part.store.supervised_counts[part.rows].tobytes())
    for rows in part.bins:
        digest.update(rows.astype(np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _describe_store(store: TokenStore) -> dict[str, Any]:
    counts = asdict(store.info)
    formats = counts.pop("formats")
    return {"format": "+".join(sorted(formats)), **counts}


def _set_chat_template(tokenizer: "PreTrainedTokenizerBase", stores: list[TokenStore]) -> None:
    if tokenizer.chat_template is None and any(store.info.conversations for store in stores):
        tokenizer.chat_template = find_chat_template(tokenizer)
        _logger.warning(
            "the tokenizer has no chat template; conversations are written as ChatML, and the "
            "exported tokenizer gets that template"
        )


def _choose_collate(section: DataSection, tokenizer: "PreTrainedTokenizerBase") -> Collate:
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad_id = next(int(token) for token in candidates if token is not None)
    collate = collate_padded if section.packing == "none" else collate_packed
    return partial(collate, pad_id=pad_id, max_length=section.max_length)
