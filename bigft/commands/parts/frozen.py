"""Models that a task asks beside the one it trains."""

from dataclasses import replace
from typing import Any

from bigft.distributed.collectives import errors_shared
from bigft.distributed.world import World
from bigft.engine.frozen import build_frozen
from bigft.engine.zero import Zero
from bigft.errors import ConfigError
from bigft.log import Console
from bigft.models.download import fetch_weights
from bigft.models.facts import read_facts
from bigft.models.load import count_parameters, load_model
from bigft.models.section import ModelSection
from bigft.run.settings import Run
from bigft.tasks.task import Task
from bigft.units import format_count


def load_frozen(  # noqa: PLR0913 (what a model needs)
    name: str,
    flag: str,
    *,
    run: Run,
    zero: Zero,
    task: Task,
    tokenizer: Any,
    dtype: Any,
    world: World,
    console: Console,
) -> Any:
    """Load a trained model under the run's own ZeRO, for forward passes alone.

    Args:
        name: Folder or hub id.
        flag: The setting that named it, for messages.
        run: The run's settings.
        zero: How its parameters are partitioned.
        task: What kind of model.
        tokenizer: Of the run; the model has to have the same one.
        dtype: Of the weights.
        world: Of this rank.
        console: Says what was loaded.

    Raises:
        CheckpointError: There are no weights, or they do not fit.
        ConfigError: It has another tokenizer.

    Collective: every rank.
    """
    section = ModelSection(
        name=name,
        attention=run.model.attention,
        trust_remote_code=run.model.trust_remote_code,
    )
    with errors_shared():
        facts = read_facts(section)
        if not facts.has_weights:
            raise ConfigError(f"{flag} {name}: has no weights; name a trained model")
        _check_tokenizer(name, flag, tokenizer, run.model.trust_remote_code)
        facts = replace(facts, weight_files=fetch_weights(section, facts))
        model = load_model(
            section,
            facts,
            zero,
            auto_class=task.auto_class(),
            tokenizer=tokenizer,
            dtype=dtype,
            device=world.device,
            seed=run.trainer.seed,
        )
    parameters = format_count(count_parameters(model.module))
    console.say(f"{name}: {type(model.module).__name__}, {parameters} parameters, frozen")
    module = model.module if zero.partitions_parameters else model.module.to(world.device)
    return build_frozen(module, zero.config)


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
