"""The settings of `bigft data`: those of a run that decide what its tokenised data look like."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from bigft.config.flags import to_path
from bigft.config.request import Request
from bigft.config.section import Section
from bigft.config.typed import Typed, build_section, fields_of, find_field, read_flags, read_recipe
from bigft.data.contradictions import find_contradictions
from bigft.data.section import DataSection
from bigft.errors import ConfigError, raise_together
from bigft.models.section import ModelSection
from bigft.run.draft import expand_home
from bigft.run.settings import Run, find_defaults
from bigft.tasks.section import TaskSection
from bigft.trainer.section import TrainerSection


class OrderSection(Section):
    """What the preview takes of the trainer's settings."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = TrainerSection().seed
    """Decides which rows of weighted sources the first epoch takes, and how changed copies differ
    from their rows."""


class PreviewSettings(Section):
    """What the tokenised data of a run look like, and how much of them is shown."""

    examples: Annotated[int, Field(ge=0)] = 3
    """Rows to show, with the tokens that count in the loss marked."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    task: TaskSection = TaskSection()
    trainer: OrderSection = OrderSection()


def resolve_preview(request: Request) -> PreviewSettings:
    """Decide every setting of a preview: default < recipe < flag.

    A recipe may hold the settings of a whole run; those of other sections are not looked at.

    Raises:
        ConfigError: Something is unknown, contradictory or out of range; all of it is listed.
    """
    problems = list(_find_foreign(request))
    fields = dict(fields_of(PreviewSettings))
    typed: dict[str, Typed] = {}
    if request.recipe:
        recipe = read_recipe(request.recipe, Run, problems)
        typed = {path: value for path, value in recipe.items() if find_field(fields, path)}
    flags = {name: text for name, text in request.settings.items() if not _is_foreign(name)}
    typed |= read_flags(flags, PreviewSettings, problems)
    if request.words:
        if "data" in flags or "data.train" in flags:
            problems.append(f"given twice: {request.words[0]} and --data. Drop one of them")
        typed["data.train"] = Typed(request.words[0], "flag FILE")
    task = build_section(PreviewSettings, typed, problems).task
    for path, value in find_defaults(task).items():
        typed.setdefault(path, Typed(value, f"default of --task {task.name}"))
    settings = build_section(PreviewSettings, typed, problems)
    if settings.data.loading.streaming:
        problems.append(
            "--data.loading.streaming=true: the preview reads all rows; give a part of the data,"
            " and --data.loading.streaming false"
        )
    problems += find_contradictions(settings.data)
    if problems:
        raise_together(ConfigError, problems)
    return settings.model_copy(update={"model": expand_home(settings.model)})


def _find_foreign(request: Request) -> Iterator[str]:
    names = [*(["config"] if request.config else []), *filter(_is_foreign, request.settings)]
    for name in names:
        yield (
            f"--{name}: `bigft data` does not take it; it takes --model and the settings of the"
            " data, see `bigft data --help`"
        )


def _is_foreign(name: str) -> bool:
    """Whether a flag is one of a run, but says nothing about its data."""
    if name in ("config", "dry_run", "ds") or name.startswith("ds."):
        return True
    is_known = find_field(dict(fields_of(PreviewSettings)), to_path(name)) is not None
    return not is_known and find_field(dict(fields_of(Run)), to_path(name)) is not None
