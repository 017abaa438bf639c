"""From settings to tokenised rows and a choice among them, without torch.

Training builds its loaders on this (`bigft.data.build`), the preview only looks at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bigft.data.counts import count_terms, count_tokens
from bigft.data.layouts.layout import BuildLayout, Layout
from bigft.data.layouts.next_token import NextToken
from bigft.data.layouts.several import choose_layout
from bigft.data.order.pack import Bins
from bigft.data.order.select import Selection, describe_selection, open_selection
from bigft.data.section import DataSection, seed_copies
from bigft.data.sources.find import Part, find_sources
from bigft.data.sources.progress import Tell, tell_nobody
from bigft.data.sources.spec import split_spec
from bigft.data.store.prepare import open_store
from bigft.data.store.rows import Rows
from bigft.data.store.store import StoreInfo, TokenStore
from bigft.errors import DataError, raise_together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Opened:
    """The stores of a run and what is chosen of them."""

    parts: tuple[Part, ...]
    """Of `--data`; part n has the rows of store n of `train`."""

    eval_parts: tuple[Part, ...]
    """Of `--eval_data`; the same as `parts` where a share of it is held out."""

    train: Rows
    evaluation: Rows
    """The same object as `train` where a share of it is held out."""

    selection: Selection

    @property
    def has_own_evaluation(self) -> bool:
        """Whether evaluation has data of its own."""
        return self.evaluation is not self.train

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts of `--data`."""
        return find_names(self.parts)

    @property
    def eval_names(self) -> tuple[str, ...]:
        """Names of the parts that are evaluated on."""
        return find_names(self.eval_parts)

    @property
    def stores(self) -> tuple[TokenStore, ...]:
        """All stores, each once."""
        own = self.evaluation.stores if self.has_own_evaluation else ()
        return self.train.stores + own


def open_all(
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    tell: Tell = tell_nobody,
    lay_out: BuildLayout = NextToken,
    *,
    apart: bool = False,
) -> Opened:
    """Tokenise what is not yet in the cache, choose and pack, in this process.

    Args:
        section: Settings of the data.
        tokenizer: Of the model.
        seed: Decides what weighted parts contribute, and changed copies.
        tell: Shows a line now and then where tokenising takes long.
        lay_out: Makes rows and batches of examples.
        apart: Whether the parts of `--data` are kept apart.

    Raises:
        DataError: The data are missing, bad or empty; all problems are listed.
    """
    section = seed_copies(section, seed)
    problems = []
    specs = [(section.train, "--data")]
    if section.eval is not None:
        specs.append((section.eval, "--eval_data"))
    found = []
    for spec, flag in specs:
        try:
            found.append(open_rows(spec, flag, section, tokenizer, tell, lay_out))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise_together(DataError, problems)
    (parts, train), (eval_parts, evaluation) = found[0], found[-1]
    weights = [part.weight for part in parts]
    selection = open_selection(train, evaluation, weights, section, seed=seed, apart=apart)
    return Opened(parts, eval_parts, train, evaluation, selection)


def open_rows(
    spec: str,
    flag: str,
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    tell: Tell = tell_nobody,
    lay_out: BuildLayout = NextToken,
) -> tuple[tuple[Part, ...], Rows]:
    """Open the rows of everything that one setting names.

    Args:
        spec: The setting's value.
        flag: The setting, for error messages.
        section: How the rows are read and tokenised; its own `train` and `eval` do not matter.
        tokenizer: Of the model.
        tell: Shows a line now and then where tokenising takes long.
        lay_out: Makes rows and batches of examples.

    Raises:
        DataError: The data are missing, bad or empty; all problems are listed.
    """
    stores, problems = [], []
    # Only training goes through its data more or less often.
    parts = find_parts(spec, flag, section)
    for part in parts:
        own = partial(choose_layout, lay_out, part.name)
        try:
            stores.append(open_store(part, section, tokenizer, tell, own))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise_together(DataError, problems)
    return tuple(parts), Rows(stores, find_names(parts))


def find_parts(spec: str, flag: str, section: DataSection) -> tuple[Part, ...]:
    """Find the parts of a setting; those of `--data` have the names that were given.

    Evaluation data of as many parts have them, too.

    Raises:
        DataError: There are none, or not as many as names.
    """
    names, is_training = section.loading.names, flag == "--data"
    if not is_training and names is not None and len(split_spec(spec)) != len(names):
        names = None
    return tuple(find_sources(spec, flag, weighted=is_training, names=names))


def find_names(parts: Sequence[Part]) -> tuple[str, ...]:
    """List the names of parts."""
    return tuple(part.name for part in parts)


def describe(opened: Opened, bins: Bins, section: DataSection, layout: Layout) -> dict[str, Any]:
    """Count what a run will see.

    Args:
        opened: Stores and selection.
        bins: Sequences of the first epoch.
        section: Settings of the data.
        layout: Of the rows.
    """
    sides = (opened.train, opened.evaluation) if opened.has_own_evaluation else (opened.train,)
    return {
        **describe_stores(opened.stores),
        "tokens": sum(int(count_tokens(layout, rows).sum()) for rows in sides),
        "terms": sum(int(count_terms(layout, rows).sum()) for rows in sides),
        "learns": layout.learns,
        "packing": section.packing,
        **describe_selection(opened.selection, bins, opened.train, section.max_length),
        "sources": list(opened.names),
    }


def describe_stores(stores: tuple[TokenStore, ...]) -> dict[str, Any]:
    """Add up what was counted while the rows were tokenised."""
    total = StoreInfo()
    for store in stores:
        total.add(store.info)
    counts = {key: value for key, value in vars(total).items() if key not in ("formats", "content")}
    rejected = total.bad_rows + total.unsupervised_rows
    return {"format": "+".join(sorted(total.formats)), **counts, "rejected_rows": rejected}
