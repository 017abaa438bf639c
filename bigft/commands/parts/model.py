"""The model of a run: one of transformers, or a body with several heads."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bigft.checkpoint.parts import PARTS_NAME, describe_parts
from bigft.data.tokens.tokenize import find_end_token_ids
from bigft.distributed.place import HERE
from bigft.distributed.world import World
from bigft.engine.zero import Zero
from bigft.models.facts import ModelFacts
from bigft.models.load import LoadedModel, load_model, plan_parameters
from bigft.models.shared import SharedBody, load_shared, name_head, plan_shared_parameters
from bigft.models.tokenizer import adopt_special_tokens
from bigft.run.settings import Run
from bigft.tasks.multitask import MultiTask
from bigft.tasks.task import Task


def load_run_model(
    run: Run, task: Task, facts: ModelFacts, zero: Zero, tokenizer: Any, dtype: Any, world: World
) -> LoadedModel:
    """Load what the task trains. Collective: every rank.

    Raises:
        CheckpointError: The weights do not fit the architecture.
        ConfigError: transformers does not know the architecture, or has no such head for it.
    """
    HERE.note(phase="loading the model")
    load = partial(
        load_shared if isinstance(task, MultiTask) else load_model,
        run.model,
        facts,
        zero,
        tokenizer=tokenizer,
        dtype=dtype,
        device=world.device,
        seed=run.trainer.seed,
    )
    if isinstance(task, MultiTask):
        model: LoadedModel = load(task.list_heads(tokenizer))
    else:
        model = load(
            auto_class=task.auto_class(),
            configure=partial(task.configure, tokenizer=tokenizer),
            has_new_head=task.has_new_head,
        )
    if not facts.has_weights:
        for _, one in list_models(model.module):
            adopt_special_tokens(one, tokenizer, find_end_token_ids(tokenizer))
    return model


def count_planned_parameters(run: Run, task: Task, facts: ModelFacts, tokenizer: Any) -> int:
    """Count the parameters that the model will have, without building any of them."""
    if isinstance(task, MultiTask):
        heads = task.list_heads(tokenizer)
        return plan_shared_parameters(run.model, facts, heads, len(tokenizer))
    configure = partial(task.configure, tokenizer=tokenizer)
    return plan_parameters(run.model, facts, task.auto_class(), len(tokenizer), configure)


def list_models(module: Any) -> Iterator[tuple[str, Any]]:
    """List the models of transformers that an export consists of, each with its folder.

    A body with several heads is the base model at the top, and a whole model for each head.
    """
    if not isinstance(module, SharedBody):
        yield "", module
        return
    yield "", module.body
    yield from module.find_heads().items()


def write_assets(module: Any, tokenizer: Any, folder: Path) -> None:
    """Write configurations and the tokenizer, as the export will have them."""
    tokenizer.save_pretrained(folder)
    for name, model in list_models(module):
        (folder / name).mkdir(exist_ok=True)
        config = type(model.config).from_dict(model.config.to_dict())
        # Training runs without a key-value cache; the model that users load wants one.
        config.get_text_config().use_cache = True
        # As transformers does: other programs choose their code by it, and a model that was built
        # from a bare config.json lacks it.
        config.architectures = [type(model).__name__]
        if isinstance(module, SharedBody) and not name:
            # Its configuration was that of a head.
            config.num_labels, config.problem_type = 2, None
        config.save_pretrained(folder / name)
        is_writer = not isinstance(module, SharedBody) or model.can_generate()
        if is_writer and getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder / name)
    if isinstance(module, SharedBody):
        parts = {name: f"heads.{name_head(name)}." for name in module.names}
        text = json.dumps(describe_parts(f"{module.prefix}.", "body.", parts), indent=2)
        (folder / PARTS_NAME).write_text(f"{text}\n", encoding="utf-8")
