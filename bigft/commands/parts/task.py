"""How a run reads its data."""

from functools import partial
from typing import Any

from bigft.data.section import DataSection
from bigft.data.tokens.builtin import default_cache_dir, load_builtin_tokenizer
from bigft.data.tokens.templates import TEMPLATES
from bigft.models.facts import ModelFacts
from bigft.models.section import ModelSection
from bigft.models.tokenizer import load_tokenizer
from bigft.tasks.rows import TaskRows, build_rows
from bigft.tasks.section import TaskSection


def load_rows(
    section: TaskSection, model: ModelSection, data: DataSection, facts: ModelFacts
) -> tuple[TaskRows, Any]:
    """Decide how the task reads the data, and load the tokenizer, with the tokens it needs.

    Raises:
        ConfigError: There is no tokenizer, or settings do not go with the data.
        DataError: The data are missing, or have no labels where the task needs them.
    """
    load_builtin = partial(load_builtin_tokenizer, default_cache_dir(data.loading.cache_dir))
    tokenizer = load_tokenizer(model, facts, load_builtin, TEMPLATES)
    rows = build_rows(section, data, facts.config)
    rows.complete(tokenizer, is_new=not facts.has_weights)
    return rows, tokenizer
