"""Score a model folder on a data set."""

import json
import sys
from typing import TYPE_CHECKING, Any

from bigft.config.options import EvaluateOptions, read_options
from bigft.config.request import Request
from bigft.run.settings import DEFAULTS_OF_TASK, Run

if TYPE_CHECKING:
    from bigft.data.section import DataSection
    from bigft.tasks.task import Task


def main(request: Request) -> None:
    """Load, score, print."""
    options = read_options(request, EvaluateOptions)

    from bigft.data.build import build_evaluation
    from bigft.data.loading.loader import Share
    from bigft.evaluation.loop import evaluate, keep_rows, stay_alone
    from bigft.evaluation.plain import check_model, load_plain, pick_device
    from bigft.models.facts import read_facts
    from bigft.models.section import ModelSection
    from bigft.tasks.task import find_task

    device = pick_device(options.device)
    folder = request.words[0]
    check_model(folder)
    config = read_facts(ModelSection(name=folder)).config
    name = find_task(config) if options.task == "auto" else options.task
    section = _choose_data(options, name)
    task = _build_task(options, name, section, config)
    model, tokenizer = load_plain(folder, device, task.auto_class())
    loader, info, sources = build_evaluation(
        section, tokenizer=tokenizer, share=Share(options.batch_size), lay_out=task.rows.lay_out
    )
    scores = evaluate(
        task,
        model,
        loader.eval_batches(),
        device=device,
        sum_over_ranks=stay_alone,
        gather=keep_rows,
        sources=sources,
    )
    if options.as_json:
        sys.stdout.write(json.dumps({**scores, "rows": info["rows"], "model": folder}) + "\n")
        return
    for key, value in scores.items():
        sys.stdout.write(f"{key:<16}{value:,.4f}\n".replace(".0000\n", "\n"))


def _choose_data(options: EvaluateOptions, name: str) -> "DataSection":
    from bigft.data.section import DataSection

    defaults = DEFAULTS_OF_TASK.get(name, {})
    packing = options.packing
    if packing == "auto":
        packing = "none" if name in DEFAULTS_OF_TASK else "best_fit"
    return DataSection(
        train=options.data or defaults.get("data.train", Run().data.train),
        max_length=options.max_length,
        packing=packing,
    )


def _build_task(
    options: EvaluateOptions, name: str, section: "DataSection", config: dict[str, Any]
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
