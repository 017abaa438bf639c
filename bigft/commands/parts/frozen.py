"""Models that a task asks beside the one it trains."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bigft.commands.parts.answers import open_answers
from bigft.data.store.rows import Rows
from bigft.distributed.collectives import errors_shared, local_rank_zero_first
from bigft.distributed.world import World
from bigft.engine.frozen import build_frozen, give_own_swap
from bigft.engine.zero import Zero
from bigft.errors import ConfigError
from bigft.log import Console
from bigft.models.download import fetch_weights
from bigft.models.facts import ModelFacts, read_facts
from bigft.models.identity import compute_model_digest
from bigft.models.load import count_parameters, load_model
from bigft.models.section import ModelSection
from bigft.run.settings import Run
from bigft.tasks.causal_lm import CausalLM
from bigft.tasks.packing import check_packing
from bigft.tasks.stored import Question, StoredTeacher
from bigft.tasks.task import Ask, Task
from bigft.units import format_count


@dataclass(frozen=True)
class FrozenModels:
    """Loads trained models under the run's own ZeRO, for forward passes alone; see `LoadFrozen`."""

    flag: str
    """The setting that names them, for messages."""

    run: Run
    ds: dict[str, Any]
    """Resolved DeepSpeed JSON of the run."""

    task: Task
    """What kind of model."""

    tokenizer: Any
    """Of the run; the models have to have the same one."""

    dtype: Any
    """Of the weights."""

    rows: Rows | None
    """All rows of the data; None when streaming."""

    world: World
    console: Console

    @cached_property
    def num_tokens(self) -> int:
        """One more than the highest number of a token: a tokenizer may leave out some."""
        return 1 + max(map(int, self.tokenizer.get_vocab().values()))

    def __call__(self, name: str) -> Any:
        """Load a model by the name of its folder or hub id.

        Raises:
            CheckpointError: There are no weights, or they do not fit.
            ConfigError: It has another tokenizer, or lets examples that share a sequence see each
                other.

        Collective: every rank.
        """
        forward = self._load(name, self._study(name))
        if self.run.data.packing != "none":
            with errors_shared():
                check_packing(
                    CausalLM(),
                    forward,
                    num_sequences=self.ds["train_micro_batch_size_per_gpu"],
                    num_tokens=len(self.tokenizer),
                    device=self.world.device,
                )
        return forward

    def open_stored(self, name: str, folder: str, question: Question, ask: Ask) -> StoredTeacher:
        """Open what a model says of all rows; load it and ask it only where that is not stored.

        Raises:
            CheckpointError: There are no weights, or they do not fit.
            ConfigError: It has another tokenizer, or another run fills the folder.
            PlanError: There is no room on the disk.

        Collective: every rank.
        """
        assert self.rows is not None, "a rule refuses streams"
        facts = self._study(name)
        return open_answers(
            self.rows,
            Path(folder).expanduser().absolute(),
            question,
            teacher=lambda: self._identify(facts),
            load=lambda: self._load(name, facts),
            ask=ask,
            max_tokens=self.ds["train_micro_batch_size_per_gpu"] * self.run.data.max_length,
            name=name,
            world=self.world,
            console=self.console,
        )

    def _identify(self, facts: ModelFacts) -> str:
        """Name everything that the logits follow from, but for the kernels that compute them."""
        return f"{compute_model_digest(facts.config, facts.weight_files)} {self.dtype}"

    def _load(self, name: str, facts: ModelFacts) -> Any:
        zero = Zero(give_own_swap(self.ds))
        with errors_shared():
            model = load_model(
                self._name(name),
                facts,
                zero,
                auto_class=self.task.auto_class(),
                tokenizer=self.tokenizer,
                dtype=self.dtype,
                device=self.world.device,
                seed=self.run.trainer.seed,
            )
        parameters = format_count(count_parameters(model.module))
        self.console.say(f"{name}: {type(model.module).__name__}, {parameters} parameters, frozen")
        module = model.module if zero.partitions_parameters else model.module.to(self.world.device)
        return build_frozen(module, zero.config)

    def _study(self, name: str) -> ModelFacts:
        """Check that a model is one, with the right tokenizer, and find its files."""
        section = self._name(name)
        with errors_shared(), local_rank_zero_first(self.world):
            facts = read_facts(section)
            if not facts.has_weights:
                raise ConfigError(f"{self.flag} {name}: has no weights; name a trained model")
            _check_tokenizer(name, self.flag, self.tokenizer, section.trust_remote_code)
            return replace(facts, weight_files=fetch_weights(section, facts))

    def _name(self, name: str) -> ModelSection:
        return ModelSection(
            name=name,
            attention=self.run.model.attention,
            trust_remote_code=self.run.model.trust_remote_code,
        )


def _check_tokenizer(name: str, flag: str, tokenizer: Any, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    try:
        own = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"{flag} {name}: has no tokenizer that can be loaded"
            f" ({str(error).strip().splitlines()[0]}), so that nobody can tell whether its tokens"
            " are the student's; copy it there"
        ) from error
    mine, theirs = tokenizer.get_vocab(), own.get_vocab()
    differing = [token for token in mine if theirs.get(token) != mine[token]]
    if differing:
        raise ConfigError(
            f"{flag} {name}: has another tokenizer ({len(differing):,} of {len(mine):,} tokens of"
            f" the student have another number there, {differing[0]!r} among them); a student"
            " learns from a teacher with the same tokens: --model.tokenizer names it"
        )
