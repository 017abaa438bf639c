"""Score a model folder on a data set, or two of them side by side."""

import json
import sys
from dataclasses import asdict
from typing import Any

from bigft.commands.parts.scoring import (
    Scored,
    name_task,
    read_with_data,
    score_folder,
    score_harness,
)
from bigft.config.options import (
    EvaluateOptions,
    GenerationOptions,
    HarnessOptions,
)
from bigft.config.request import Request
from bigft.data.section import DataSection
from bigft.errors import ConfigError


def main(request: Request) -> None:
    """Load, score, print."""
    options, data = read_with_data(request, EvaluateOptions)
    _check_harness_alone(request, options)
    idle = [f"--{name}" for name in GenerationOptions.model_fields if name in request.settings]
    if idle and not options.metrics:
        raise ConfigError(
            f"{', '.join(idle)}: about written answers, and none are asked for; add --metrics, or"
            " leave it out"
        )
    if options.compare is not None:
        _compare(*_order_models(request, options.compare), options, data)
        return
    folder = request.words[0]
    if options.tasks.harness:
        scored = score_harness(folder, options)
    else:
        scored = score_folder(folder, options, data)
    if options.as_json:
        sys.stdout.write(json.dumps({**scored.numbers, **scored.details}) + "\n")
        return
    width = max(map(len, [*scored.numbers, *scored.signatures])) + 2
    for key, value in scored.numbers.items():
        sys.stdout.write(f"{key:<{width}}{value:,.4f}\n".replace(".0000\n", "\n"))
    for key, text in scored.signatures.items():
        sys.stdout.write(f"{key:<{width}}{text}\n")


def _check_harness_alone(request: Request, options: EvaluateOptions) -> None:
    """Refuse options of `--harness` without it, and others beside it."""
    own = set(HarnessOptions.model_fields)
    if not options.tasks.harness:
        idle = [f"--{name}" for name in request.settings if name in own]
        if idle:
            raise ConfigError(f"{', '.join(idle)}: about tasks of lm-eval; add --harness TASKS")
        return
    others = [n for n in request.settings if n not in own | {"batch_size", "device", "json"}]
    if others:
        raise ConfigError(
            f"--harness runs tasks that have data and metrics of their own; leave"
            f" {', '.join(f'--{name}' for name in others)} out"
        )


def _order_models(request: Request, compared: str) -> tuple[str, str]:
    """Find which is A and which B: the order in which they were typed.

    `--compare A B` gives B as the word of the command, and `A --compare B` gives it A.
    """
    word = request.words[0]
    for typed in request.argv[1:]:
        if typed.partition("=")[0] == "--compare":
            return compared, word
        if typed == word:
            break
    return word, compared


def _compare(first: str, second: str, options: EvaluateOptions, data: DataSection) -> None:
    from bigft.evaluation.bootstrap import RESAMPLES, SEED, show_differences

    if options.packing == "best_fit":
        raise ConfigError(
            "--packing best_fit: --compare needs the loss of every example; leave --packing out"
        )
    tasks = [name_task(folder, options) for folder in (first, second)]
    if tasks[0] != tasks[1]:
        raise ConfigError(
            f"--compare: {first} does {tasks[0]} and {second} {tasks[1]}; compare models of one"
            " task"
        )
    options = options.model_copy(update={"packing": "none"})
    # One after the other: two large models need not fit at once.
    a = score_folder(first, options, data, keeps_examples=True)
    b = score_folder(second, options, data, keeps_examples=True)
    differences = _find_differences(a, b)
    if options.as_json:
        found = {
            "a": {**a.numbers, **a.details},
            "b": {**b.numbers, **b.details},
            "differences": {name: asdict(one) for name, one in differences.items()},
            "resamples": RESAMPLES,
            "seed": SEED,
        }
        sys.stdout.write(json.dumps(found) + "\n")
        return
    others = {
        name: (value, b.numbers[name])
        for name, value in a.numbers.items()
        if name in b.numbers and name not in differences and name not in a.counts
    }
    sys.stdout.write(f"A  {first}\nB  {second}\n\n{show_differences(differences, others)}\n")


def _find_differences(a: Scored, b: Scored) -> dict[str, Any]:
    from bigft.evaluation.bootstrap import compare, divide, has_same_terms
    from bigft.evaluation.text_metrics import join_bleu

    found = {}
    for name in a.examples.keys() & b.examples.keys():
        if name == "loss" and not has_same_terms(a.examples[name], b.examples[name]):
            sys.stderr.write(
                "bigft: the tokenizers of the two models cut the texts differently, so their losses"
                " per token are not compared\n"
            )
            continue
        difference = compare(
            a.examples[name], b.examples[name], join_bleu if name == "bleu" else divide
        )
        if difference is not None:
            found[name] = difference
    # In the order of the scores.
    return {name: found[name] for name in a.numbers if name in found}
