"""Tasks of EleutherAI's lm-evaluation-harness, run on a finished model folder.

Biderman et al., "Lessons from the Trenches on Reproducible Evaluation of Language Models", arXiv
2405.14782.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bigft.config.hints import suggest
from bigft.errors import ConfigError, DataError

_PLAIN_FILTER = ",none"
"""Behind the name of a metric of answers that were taken as they are."""


def check_harness() -> None:
    """Check that the harness is installed, and what its models of transformers need.

    Raises:
        ConfigError: They are not; says how to install them.
    """
    try:
        # It looks for accelerate only when a model is made.
        import accelerate  # noqa: F401
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'--harness: lm-eval is not installed ({error}); pip install "bigft[harness]"'
        ) from error


def find_tasks(names: Sequence[str], folder: str | None) -> Any:
    """Find tasks by their names, or by patterns such as `mmlu_*`.

    Args:
        names: As typed.
        folder: Holds tasks in YAML beside those that the harness brings.

    Returns:
        The harness's task manager.

    Raises:
        ConfigError: The folder or a task is not there.
    """
    from lm_eval.tasks import TaskManager

    if folder is not None and not Path(folder).expanduser().is_dir():
        raise ConfigError(f"--harness_folder {folder}: no such folder")
    place = None if folder is None else str(Path(folder).expanduser())
    if place is not None:
        # The harness brings 15,000 tasks, which take seconds to list.
        manager = TaskManager(include_path=place, include_defaults=False)
        if all(manager.match_tasks([name]) for name in names):
            return manager
    manager = TaskManager(include_path=place)
    for name in names:
        if not manager.match_tasks([name]):
            own = f" nor in {folder}" if folder else "; tasks of your own: --harness_folder FOLDER"
            raise ConfigError(
                f"--harness {name}: no such task in lm-eval{own}{suggest(name, manager.all_tasks)}"
            )
    return manager


def run_tasks(
    names: Sequence[str],
    manager: Any,
    model: Any,
    tokenizer: Any,
    *,
    device: torch.device,
    batch_size: int,
    num_fewshot: int | None,
    limit: int | None,
) -> dict[str, Any]:
    """Run tasks.

    Args:
        names: Of the tasks.
        manager: What `find_tasks` returned.
        model: A transformers model in evaluation mode.
        tokenizer: Its tokenizer.
        device: Where the model is.
        batch_size: Sequences in one forward pass.
        num_fewshot: Solved examples before each question; None: as each task has it.
        limit: Examples of each task; None for all.

    Returns:
        What `simple_evaluate` returns.

    Raises:
        DataError: The data of a task cannot be loaded, or it cannot be run.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    # It tells developers of models what to do otherwise.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(device))
    try:
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=manager.match_tasks(list(names)),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            log_samples=False,
        )
    except ImportError as error:
        raise DataError(
            f"--harness {','.join(names)}: needs another package ({error}); install it"
        ) from error
    except (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:
        # What a task's data, YAML, functions or metrics do wrong comes out as any of these.
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"--harness {','.join(names)}: lm-eval cannot run it: {type(error).__name__}:"
            f" {first[0]}; the data of its own tasks come from the hub: check the network, or try"
            " `lm_eval` alone"
        ) from error
    return found


def list_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """List the metrics of tasks, as `acc/hellaswag`, and their standard errors.

    Args:
        found: What `run_tasks` returned.
    """
    return {
        f"{metric.removesuffix(_PLAIN_FILTER)}/{task}": float(value)
        for task, values in found["results"].items()
        for metric, value in values.items()
        if "," in metric and not isinstance(value, str)
    }


def describe_tasks(found: Mapping[str, Any]) -> dict[str, Any]:
    """Say what the numbers depend on beside the model: versions, examples, solved examples."""
    tasks = {
        name: {
            "version": version,
            "num_fewshot": found["n-shot"].get(name),
            "examples": found["n-samples"].get(name, {}).get("effective"),
        }
        for name, version in found["versions"].items()
    }
    return {"lm_eval": found["lm_eval_version"], "tasks": tasks}
