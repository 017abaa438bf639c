"""Score one model folder: its loss, the metrics of its task, and the answers that it writes."""

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bigft.config.options import EvaluateOptions, OptionsT, read_options
from bigft.config.request import Request
from bigft.config.section import Section
from bigft.config.typed import build_section, read_flags
from bigft.data.contradictions import find_contradictions
from bigft.data.section import DataSection
from bigft.errors import ConfigError, list_problems, raise_together
from bigft.run.settings import DEFAULTS_OF_TASK

if TYPE_CHECKING:
    from bigft.data.layouts.layout import Layout
    from bigft.evaluation.examples import Sums
    from bigft.evaluation.written import Written
    from bigft.tasks.task import Task

PLAIN_DATA = DataSection()

_READING = ("columns", "format", "train_on", "overlong", "on_bad_row", "loading")
"""Settings of the data that say how they are read."""


class _Settings(Section):
    data: DataSection = PLAIN_DATA


@dataclass
class Scored:
    """What a model is worth on some data."""

    numbers: dict[str, float]
    """Metrics, and what they are means over."""

    counts: tuple[str, ...]
    """Names of the latter."""

    details: dict[str, Any]
    """For `--json` alone."""

    signatures: dict[str, str] = field(default_factory=dict)
    """How BLEU and chrF were computed."""

    examples: "dict[str, Sums]" = field(default_factory=dict)
    """Metric -> what each example adds to it; empty unless asked for."""


def name_task(folder: str, options: EvaluateOptions) -> str:
    """Say what a model does.

    Raises:
        CheckpointError: There is no model.
    """
    from bigft.evaluation.plain import check_model
    from bigft.models.facts import read_facts
    from bigft.models.section import ModelSection
    from bigft.tasks.task import find_task

    check_model(folder)
    config = read_facts(ModelSection(name=folder), find_weights=False).config
    return find_task(config) if options.task == "auto" else options.task


def read_with_data(request: Request, model: type[OptionsT]) -> tuple[OptionsT, DataSection]:
    """Check the options of a command, and the settings of the data among them.

    The latter have the names that they have in training.

    Raises:
        ConfigError: Some are unknown, do not fit, or choose rows; all are listed.
    """
    problems: list[str] = []
    chosen = {name: text for name, text in request.settings.items() if name.startswith("data.")}
    rest = {name: text for name, text in request.settings.items() if name not in chosen}
    for name in [name for name in chosen if name.split(".")[1] not in _READING]:
        known = ", ".join(f"--data.{kind}" for kind in _READING)
        problems.append(
            f"--{name}: a model is scored on all rows of --data as they are; of the settings of the"
            f" data, `bigft {request.command}` takes {known}"
        )
        del chosen[name]
    data = build_section(_Settings, read_flags(chosen, _Settings, problems), problems).data
    problems += find_contradictions(data)
    if data.loading.streaming:
        problems.append(
            f"--data.loading.streaming true: `bigft {request.command}` reads all rows before it"
            " scores them; leave it out"
        )
    try:
        options = read_options(replace(request, settings=rest), model)
    except ConfigError as error:
        problems += list_problems(error)
    if problems:
        raise_together(ConfigError, problems)
    return options, data


def score_folder(
    folder: str,
    options: EvaluateOptions,
    data: DataSection = PLAIN_DATA,
    *,
    keeps_examples: bool = False,
) -> Scored:
    """Load a model, score it, and let it go again.

    Args:
        folder: A path or a hub id.
        options: Of the command.
        data: How they are read; which they are, and how long, `options` say.
        keeps_examples: Whether `examples` are to be filled; then without packing only.

    Raises:
        CheckpointError: There is no loadable model.
        ConfigError: Options do not go with the model, or a package is missing.
        DataError: The data are missing or do not go with the task.
    """
    from bigft.data.build import build_evaluation
    from bigft.data.loading.loader import Share
    from bigft.evaluation.examples import PerExample
    from bigft.evaluation.loop import evaluate, keep_rows, stay_alone
    from bigft.evaluation.plain import load_plain, pick_device
    from bigft.evaluation.written import check_metrics
    from bigft.models.facts import read_facts
    from bigft.models.section import ModelSection

    device = pick_device(options.device)
    name = name_task(folder, options)
    check_metrics(options.metrics, name)
    section = _choose_data(options, name, data)
    config = read_facts(ModelSection(name=folder), find_weights=False).config
    task = _build_task(options, name, section, config)
    model, tokenizer = load_plain(folder, device, task.auto_class())
    loader, info, sources = build_evaluation(
        section, tokenizer=tokenizer, share=Share(options.batch_size), lay_out=task.rows.lay_out
    )
    keeper = PerExample(task)
    numbers = evaluate(
        keeper if keeps_examples else task,
        model,
        loader.eval_batches(),
        device=device,
        sum_over_ranks=stay_alone,
        gather=keep_rows,
        sources=sources,
    )
    scored = Scored(numbers, (task.unit, "examples"), {"rows": info["rows"], "model": folder})
    if keeps_examples:
        scored.examples = keeper.sum_examples(loader.list_digests())
    if options.metrics:
        layout = task.rows.lay_out(tokenizer, section)
        _add_written(scored, _write(options, section, layout, model, tokenizer), sources)
    return scored


def score_harness(folder: str, options: EvaluateOptions) -> Scored:
    """Load a model and run tasks of lm-eval on it.

    Raises:
        CheckpointError: There is no loadable model.
        ConfigError: It writes no text, there is no such task, or a package is missing.
        DataError: A task cannot be run.
    """
    from bigft.evaluation.harness import (
        check_harness,
        describe_tasks,
        find_tasks,
        list_numbers,
        run_tasks,
    )
    from bigft.evaluation.plain import load_plain, pick_device
    from bigft.models.facts import read_facts
    from bigft.models.section import ModelSection

    wanted, name = options.tasks, name_task(folder, options)
    if name not in ("causal_lm", "seq2seq"):
        raise ConfigError(f"--harness: for models that write text, and {folder} does {name}")
    check_harness()
    device = pick_device(options.device)
    manager = find_tasks(wanted.harness, wanted.harness_folder)
    config = read_facts(ModelSection(name=folder)).config
    task = _build_task(options, name, _choose_data(options, name, PLAIN_DATA), config)
    model, tokenizer = load_plain(folder, device, task.auto_class())
    found = run_tasks(
        wanted.harness,
        manager,
        model,
        tokenizer,
        device=device,
        batch_size=options.batch_size,
        num_fewshot=wanted.num_fewshot,
        limit=wanted.limit,
    )
    return Scored(list_numbers(found), (), {"harness": describe_tasks(found), "model": folder})


def _write(
    options: EvaluateOptions, section: DataSection, layout: "Layout", model: Any, tokenizer: Any
) -> "Written":
    from bigft.evaluation.answers import Decoding
    from bigft.evaluation.written import score_answers

    generation = options.generation
    return score_answers(
        model,
        tokenizer,
        layout,
        section,
        options.metrics,
        Decoding(
            options.batch_size,
            generation.max_new_tokens,
            generation.num_beams,
            generation.max_seconds,
        ),
        generation.max_examples,
        _tell,
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"bigft: {text}\n")


def _add_written(scored: Scored, written: "Written", sources: tuple[str, ...]) -> None:
    from bigft.evaluation.examples import add_up

    scores = written.scores
    scored.numbers.update(written.list_numbers(sources))
    scored.signatures = {f"{name}_signature": text for name, text in scores.signatures.items()}
    scored.details |= scored.signatures
    for name, values in scores.each.items():
        scored.examples[name] = add_up(written.digests, [[value, 1.0] for value in values])
    if scores.bleu_counts:
        scored.examples["bleu"] = add_up(written.digests, scores.bleu_counts)


def _choose_data(options: EvaluateOptions, name: str, own: DataSection) -> DataSection:
    from bigft.data.sources.glue import name_dev_sets

    defaults = DEFAULTS_OF_TASK.get(name, {})
    data = options.data or defaults.get("data.train", PLAIN_DATA.train)
    packing = options.packing
    if packing == "auto":
        packing = "none" if name in DEFAULTS_OF_TASK else "best_fit"
    chosen = {
        "train": name_dev_sets(data) or data,
        "max_length": options.max_length,
        "packing": packing,
    }
    return own.model_copy(update=chosen)


def _build_task(
    options: EvaluateOptions, name: str, section: DataSection, config: dict[str, Any]
) -> "Task":
    """Build the task as the model has it: what it predicts is not for the data to say."""
    from bigft.tasks.classes import list_classes
    from bigft.tasks.rows import build_rows
    from bigft.tasks.section import TaskSection
    from bigft.tasks.task import build_task

    labels = list_classes(config) if name == "classification" else None
    # What the settings of a run are checked for is right here.
    chosen = TaskSection.model_validate(
        {"name": name, "labels": labels or None, "prefix": options.prefix}
    )
    return build_task(chosen, build_rows(chosen, section, config))
