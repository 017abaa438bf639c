"""What a run learns, and the tokenizer for it."""

from functools import partial
from typing import Any

from bigft.data.section import DataSection
from bigft.data.tokens.builtin import default_cache_dir, load_builtin_tokenizer
from bigft.data.tokens.templates import TEMPLATES
from bigft.models.facts import ModelFacts
from bigft.models.section import ModelSection
from bigft.models.tokenizer import load_tokenizer
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Task, build_task


def load_task(
    section: TaskSection, model: ModelSection, data: DataSection, facts: ModelFacts
) -> tuple[Task, Any]:
    """Build the task and load the tokenizer, with the tokens that the task needs.

    Raises:
        ConfigError: There is no tokenizer, or settings do not go with the data.
        DataError: The data are missing, or have no labels where the task needs them.
    """
    load_builtin = partial(load_builtin_tokenizer, default_cache_dir(data.loading.cache_dir))
    tokenizer = load_tokenizer(model, facts, load_builtin, TEMPLATES)
    task = build_task(section, data, facts.config)
    task.complete(tokenizer, is_new=not facts.has_weights)
    return task, tokenizer
