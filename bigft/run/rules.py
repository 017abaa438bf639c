"""What does not go together across sections: one small function per rule.

A rule sees the resolved settings and yields findings. A setting that will be ignored is a
warning; a run that cannot work is an error. To add a rule: write the function, put it into
`RULES`, test it in `tests/unit/run/test_rules.py`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigft.config.help import show_value
from bigft.config.hints import suggest
from bigft.data.contradictions import find_contradictions
from bigft.data.section import DataSection
from bigft.data.sources.glue import TASKS, list_tasks
from bigft.data.sources.spec import split_spec, split_weight
from bigft.data.tokens.templates import TEMPLATES
from bigft.errors import ConfigError, DataError
from bigft.evaluation.ranking import strip_prefix
from bigft.evaluation.text_metrics import MAKERS, check_packages
from bigft.models.facts import BUILTIN_MODELS
from bigft.optim.place import suits_host
from bigft.run.draft import Draft
from bigft.run.finding import Finding
from bigft.run.goals import are_saves_evaluated, list_goals
from bigft.run.network_rules import check_quantised_communication, check_second_shards
from bigft.run.settings import DEFAULTS_OF_TASK, Run, find_defaults
from bigft.tasks.section import OF_ONE_TASK, TaskSection
from bigft.trainer.patience import parse_patience
from bigft.units import parse_bytes

Rule = Callable[[Draft, Run], Iterator[Finding]]

_ZERO = "zero_optimization"
# bf16 keeps 8 bits of a sum: after about this many equal addends the next one rounds away.
_MANY_MICRO_STEPS = 8
_STAGE_OF_PARAMETERS = 3
_ADAM_BUFFERS = 4
_LEAST_TASKS = 2
_TASKS_OF_LABELS = ("classification", "regression")
_WRITING_TASKS = ("causal_lm", "distillation", "seq2seq")


def warn_sequence_longer_than_positions(draft: Draft, run: Run) -> Iterator[Finding]:
    """A model has no trained positions beyond its `max_position_embeddings`."""
    limit = draft.facts.max_position_embeddings if draft.facts else None
    if limit is not None and run.data.max_length > limit:
        yield Finding(
            f"--max_length {run.data.max_length} is above the model's max_position_embeddings "
            f"{limit}: positions beyond it are untrained",
            is_error=False,
        )


def check_streaming(draft: Draft, run: Run) -> Iterator[Finding]:
    """What needs all rows at once cannot be had from a stream."""
    data = run.data
    if not data.loading.streaming:
        return
    flag = "--data.loading.streaming true"
    if run.trainer.max_steps is None:
        yield Finding(f"{flag}: nobody knows how long an epoch is. Give --max_steps")
    if data.eval is None and data.eval_fraction > 0:
        yield Finding(
            f"{flag}: no share can be held out. Give --eval_data, or --data.eval_fraction 0"
        )
    for needy in _find_what_needs_all_rows(data):
        yield Finding(f"{flag}: {needy}, which needs all rows at once. Leave that out")
    if data.on_bad_row == "error":
        yield Finding(
            f"{flag}: a bad row will end the run where it stands;"
            " --data.on_bad_row skip keeps it in rejected.jsonl instead",
            is_error=False,
        )


def _find_what_needs_all_rows(data: DataSection) -> Iterator[str]:
    if data.clean.duplicates != "keep":
        yield f"--data.clean.duplicates is {data.clean.duplicates}"
    if data.clean.test_fraction > 0:
        yield f"--data.clean.test_fraction is {data.clean.test_fraction:g}"
    # A weight that is no number is an error of its own, with the data.
    with contextlib.suppress(DataError):
        if any(split_weight(part, "--data")[1] is not None for part in split_spec(data.train)):
            yield f"--data {data.train} has weights"


def check_data(draft: Draft, run: Run) -> Iterator[Finding]:
    """Settings of the data that contradict each other, or name what does not exist."""
    yield from map(Finding, find_contradictions(run.data))


def check_task(draft: Draft, run: Run) -> Iterator[Finding]:
    """Settings of one task mean nothing to another, and only language models can pack."""
    name = run.task.name
    yield from _check_choices(run.task, "--task.", f"--task {name}")
    if name in DEFAULTS_OF_TASK and run.data.packing != "none":
        yield Finding(
            f"--packing {run.data.packing}: every example of --task {name} needs a sequence of its"
            " own. Use --packing none"
        )
    kinds = {name, *(part.task for part in run.task.parts.values())}
    if run.data.overlong == "split" and kinds & {"classification", "regression", "seq2seq"}:
        yield Finding(
            f"--data.overlong split: a part of an example of --task {name} says nothing about the"
            " rest. Use truncate, drop or error"
        )
    if name == "classification" and run.data.loading.streaming and run.task.labels is None:
        yield Finding(
            "--data.loading.streaming true: the labels cannot be found before training. Name them:"
            " --task.labels a,b,c"
        )


def check_distillation(draft: Draft, run: Run) -> Iterator[Finding]:
    """A student needs a teacher, and what a teacher says can be stored only in short, by row."""
    section = run.task.distillation
    if run.task.name != "distillation":
        return
    if not section.teacher:
        yield Finding(
            "--task distillation: who teaches? Give --task.distillation.teacher FOLDER_OR_ID"
        )
    if section.logits is None:
        return
    flag = f"--task.distillation.logits {section.logits}"
    if section.top_k is None:
        yield Finding(
            f"{flag}: whole vocabularies are too large to be stored. Say how many tokens:"
            " --task.distillation.top_k 64"
        )
    if run.data.loading.streaming:
        yield Finding(
            f"{flag}: a stream has no rows that could be found again. Leave it out, or"
            " --data.loading.streaming"
        )


def _check_choices(task: TaskSection, prefix: str, shown: str) -> Iterator[Finding]:
    """Check the settings of one task, which may be one of several."""
    for setting, tasks in OF_ONE_TASK.items():
        value = getattr(task, setting)
        # Not by what was typed: the record of a run holds every setting.
        if task.name not in tasks and value != TaskSection.model_fields[setting].default:
            advice = "Leave it out"
            if task.name == "multitask":
                advice = f"Write it for the task that it is for: --task.parts.NAME.{setting}"
            yield Finding(
                f"{prefix}{setting} {show_value(value)}: {shown} has no such setting (that is of"
                f" {', '.join(tasks)}). {advice}"
            )
    if task.focal_gamma and task.label_smoothing:
        yield Finding(
            f"{prefix}focal_gamma and {prefix}label_smoothing pull in opposite directions. Keep one"
        )
    if task.labels is not None and len(set(task.labels)) < len(task.labels):
        yield Finding(f"{prefix}labels {','.join(task.labels)}: a name stands twice")


def check_several_tasks(draft: Draft, run: Run) -> Iterator[Finding]:
    """Tasks that share a body have data of their own each, and a model that can serve all."""
    parts = run.task.parts
    if run.task.name != "multitask" or (not parts and draft.problems):
        return  # Parts with a mistake in them have been taken out.
    if len(parts) < _LEAST_TASKS:
        alone = "".join(f". For one alone: --task {part.task}" for part in parts.values())
        yield Finding(
            f"--task multitask: needs two tasks or more, and task.parts names {len(parts)}{alone}."
            " See launch_scripts/recipes/multi_task.yaml"
        )
        return
    for name, part in parts.items():
        section = part.to_section()
        yield from _check_choices(section, f"--task.parts.{name}.", f"--task {part.task}")
    yield from _check_parts_data(run)
    yield from _check_parts_model(draft, run)


def _check_parts_data(run: Run) -> Iterator[Finding]:
    parts, data = run.task.parts, run.data
    for name, part in parts.items():
        for setting, spec in (("data", part.data), ("eval", part.eval)):
            if spec is not None and len(split_spec(spec)) != 1:
                yield Finding(
                    f"--task.parts.{name}.{setting} {spec!r}: names {len(split_spec(spec))} parts"
                    " of data; give one file, folder, glob or hub id"
                )
    without = [name for name, part in parts.items() if part.eval is None]
    if 0 < len(without) < len(parts):
        yield Finding(
            f"task.parts: {', '.join(without)} without `eval`, the others with; give all of them"
            " one, or none"
        )
    wanted = find_defaults(run.task)
    found: dict[str, Any] = {"data.train": data.train, "data.loading.names": data.loading.names}
    if not without or len(without) == len(parts):
        found["data.eval"] = data.eval
    for path, value in found.items():
        if value != wanted.get(path):
            yield Finding(
                f"--{path} {show_value(value)}: the data of several tasks are named in task.parts."
                " Leave it out"
            )
    if data.clean.duplicates.startswith("drop"):
        yield Finding(
            f"--data.clean.duplicates {data.clean.duplicates}: where two tasks read the same texts,"
            " the second would lose them. Leave it out"
        )
    if data.loading.streaming:
        yield Finding(
            "--data.loading.streaming true: a stream has one part after the other, and no mixture"
            " of tasks. Leave it out"
        )


def _check_parts_model(draft: Draft, run: Run) -> Iterator[Finding]:
    if draft.facts is None:
        return
    (made_for, *_) = draft.facts.config.get("architectures") or [""]
    shown = f"--model {run.model.name} ({made_for})"
    if draft.facts.config.get("is_encoder_decoder") or "ForConditionalGeneration" in made_for:
        yield Finding(
            f"{shown} is an encoder and decoder, whose body several heads cannot share. Use an"
            " encoder (BERT) or a decoder (Llama)"
        )
    for name, part in run.task.parts.items():
        if part.task == "causal_lm" and made_for.endswith("ForMaskedLM"):
            yield Finding(
                f"--task.parts.{name}.task causal_lm: {shown} is an encoder, which sees the tokens"
                " that it would predict. Use masked_lm, or a decoder"
            )
        if part.task == "masked_lm" and made_for.endswith("ForCausalLM"):
            yield Finding(
                f"--task.parts.{name}.task masked_lm: {shown} is a decoder, which cannot look at"
                " what comes after a hidden token. Use causal_lm, or an encoder"
            )


def check_glue(draft: Draft, run: Run) -> Iterator[Finding]:
    """A task of GLUE is a classification or a regression, and has metrics of its own."""
    pairs = [(run.data.train, run.task.name, "--data", "--task")]
    if run.task.name == "multitask":
        pairs = [
            (part.data, part.task, f"--task.parts.{name}.data", "task")
            for name, part in run.task.parts.items()
        ]
    for spec, task, data_flag, task_flag in pairs:
        yield from _check_glue_task(spec, task, data_flag, task_flag)


def _check_glue_task(spec: str, task: str, data_flag: str, task_flag: str) -> Iterator[Finding]:
    tasks: list[str] | None = None
    # Bad weights are an error of their own, with the data.
    with contextlib.suppress(DataError):
        tasks = list_tasks(spec)
    for name in tasks or ():
        known, flag = TASKS[name], f"{data_flag} glue/{name} with {task_flag} {task}"
        if task == known.task:
            continue
        if task in _TASKS_OF_LABELS:
            yield Finding(f"{flag}: its labels are for {task_flag} {known.task}")
        else:
            yield Finding(
                f"{flag}: labels are read as words. For GLUE's own metrics"
                f" ({', '.join(known.metrics)}) use {task_flag} {known.task}",
                is_error=False,
            )


def refuse_eight_bit_on_nvme(draft: Draft, run: Run) -> Iterator[Finding]:
    """Of fp16 models only DeepSpeed swaps: 8-bit states as fp32 numbers; training diverges."""
    path = f"{_ZERO}.offload_optimizer.device"
    is_8bit = run.optim.name == "adamw_8bit" and not draft.has("optimizer")
    if is_8bit and draft.get(path) == "nvme" and not suits_host(draft.ds):
        yield Finding(
            f"--optim adamw_8bit with {path} = nvme ({draft.where(path)}) needs bf16 or fp32, and"
            f" no {_ZERO}.offload_optimizer.ratio: DeepSpeed's own swapper, used otherwise, turns"
            " the 8-bit states into fp32 without a word, and training diverges. Use"
            f" --ds.fp16.enabled=false --ds.bf16.enabled=true, or --ds.{path}=cpu"
        )


def check_host_choices(draft: Draft, run: Run) -> Iterator[Finding]:
    """What only the optimizer in host memory can do is not ignored elsewhere."""
    is_host = suits_host(draft.ds) and not draft.has("optimizer")
    for name, value, default in (
        ("master_bits", run.optim.master_bits, 32),
        ("fp32_embeddings", run.optim.fp32_embeddings, False),
    ):
        if value != default and not is_host:
            yield Finding(
                f"--optim.{name} {value}: only bigft's optimizer in host memory has this choice."
                " Leave it out, or use --config ds_configs/zero3_offload.json"
            )
    if run.optim.fp32_embeddings and run.optim.name == "adamw":
        yield Finding(
            "--optim.fp32_embeddings with --optim adamw: all its moments are fp32 numbers. Leave"
            " it out, or use --optim adamw_8bit"
        )


def refuse_two_precisions(draft: Draft, run: Run) -> Iterator[Finding]:
    """DeepSpeed asserts on this after minutes of start-up."""
    if draft.get("bf16.enabled") and draft.get("fp16.enabled"):
        yield Finding(
            f"bf16.enabled ({draft.where('bf16.enabled')}) and fp16.enabled "
            f"({draft.where('fp16.enabled')}) are both true. Keep one"
        )


def check_stage(draft: Draft, run: Run) -> Iterator[Finding]:
    """Stages are 0 to 3; offload needs partitioned states."""
    stage = draft.get(f"{_ZERO}.stage")
    if not isinstance(stage, int):
        return
    where = draft.where(f"{_ZERO}.stage")
    if stage not in (0, 1, 2, 3):
        yield Finding(f"{_ZERO}.stage = {stage} ({where}): must be 0, 1, 2 or 3")
    for part, least in (("offload_param", _STAGE_OF_PARAMETERS), ("offload_optimizer", 1)):
        device = draft.get(f"{_ZERO}.{part}.device")
        if device not in (None, "none") and stage < least:
            yield Finding(
                f"{_ZERO}.{part}.device = {device} needs {_ZERO}.stage {least}"
                f"{'' if least == _STAGE_OF_PARAMETERS else ' or above'}, not {stage} ({where})"
            )


def refuse_nvme_below_stage_three(draft: Draft, run: Run) -> Iterator[Finding]:
    """Stages 1 and 2 know no NVMe: they would quietly keep the states in host memory."""
    device = draft.get(f"{_ZERO}.offload_optimizer.device")
    stage = draft.get(f"{_ZERO}.stage")
    if device == "nvme" and stage in (1, 2):
        yield Finding(
            f"{_ZERO}.offload_optimizer.device = nvme needs {_ZERO}.stage 3, not {stage}. Use "
            "stage 3, or device cpu"
        )


def check_swap_buffers(draft: Draft, run: Run) -> Iterator[Finding]:
    """Adam swaps parameter, gradient and two moments at once."""
    path = f"{_ZERO}.offload_optimizer.buffer_count"
    count = draft.get(path)
    is_nvme = draft.get(f"{_ZERO}.offload_optimizer.device") == "nvme"
    if is_nvme and isinstance(count, int) and count < _ADAM_BUFFERS:
        yield Finding(
            f"{path} = {count} ({draft.where(path)}): Adam needs at least {_ADAM_BUFFERS} "
            "(parameter, gradient, two moments)"
        )


def check_warmup(draft: Draft, run: Run) -> Iterator[Finding]:
    """A warm-up that never ends keeps the learning rate below what was asked for."""
    steps, limit = run.optim.warmup_steps, run.trainer.max_steps
    if limit is not None and steps >= 1 and steps > limit:
        yield Finding(
            f"--optim.warmup_steps {steps:g} is above --max_steps {limit}: the learning rate would "
            "never reach its peak. A value below 1 is a fraction of all steps"
        )
    if steps > 1 and steps != int(steps):
        yield Finding(f"--optim.warmup_steps {steps:g}: above 1 it counts steps; write a whole one")


def check_schedule_arguments(draft: Draft, run: Run) -> Iterator[Finding]:
    """`cosine_with_min_lr` has no default for its minimum."""
    given = run.optim.lr_scheduler_kwargs
    if run.optim.lr_scheduler_type == "cosine_with_min_lr" and not {"min_lr", "min_lr_rate"} & set(
        given
    ):
        yield Finding(
            "--optim.lr_scheduler_type cosine_with_min_lr needs a minimum: "
            "--optim.lr_scheduler_kwargs.min_lr_rate 0.1"
        )


def warn_epochs_without_effect(draft: Draft, run: Run) -> Iterator[Finding]:
    """`max_steps` wins over epochs."""
    typed = draft.typed.get("trainer.num_train_epochs")
    if run.trainer.max_steps is not None and typed is not None:
        yield Finding(
            f"{typed} has no effect: --max_steps {run.trainer.max_steps} decides", is_error=False
        )


def check_early_stopping(draft: Draft, run: Run) -> Iterator[Finding]:
    """Early stopping decides by evaluations during the run."""
    text = run.trainer.early_stopping
    if text is None:
        return
    flag = f"--trainer.early_stopping {text}"
    try:
        parse_patience(text)
    except ValueError as error:
        yield Finding(f"--trainer.early_stopping: {error}")
    yield from _find_missing_evaluations(run, flag)
    if run.checkpoint.best is None and not are_saves_evaluated(run):
        yield Finding(
            f"{flag}: the model of the last step will be exported, not that of the best. To keep"
            f" the best, give --save_steps a multiple of --eval_steps {run.evaluation.eval_steps}",
            is_error=False,
        )


def check_best(draft: Draft, run: Run) -> Iterator[Finding]:
    """A metric belongs to a checkpoint only if it was measured at the same step."""
    if run.checkpoint.best is None:
        return
    flag = f"--checkpoint.best {run.checkpoint.best}"
    yield from _find_missing_evaluations(run, flag)
    save, evaluate = run.checkpoint.save_steps, run.evaluation.eval_steps
    if evaluate > 0 and not are_saves_evaluated(run):
        yield Finding(
            f"{flag}: --save_steps {save} is no multiple of --eval_steps {evaluate}, so checkpoints"
            f" would have no metric. Use --save_steps {max(1, round(save / evaluate)) * evaluate}"
        )


def _find_missing_evaluations(run: Run, flag: str) -> Iterator[Finding]:
    if run.evaluation.eval_steps == 0:
        yield Finding(f"{flag} needs evaluations during the run. Give --eval_steps")
    if run.data.eval is None and run.data.eval_fraction == 0:
        yield Finding(
            f"{flag} needs evaluation data. Give --eval_data, or --data.eval_fraction above 0"
        )


def check_answers(draft: Draft, run: Run) -> Iterator[Finding]:
    """Metrics of answers are for models that write, and need packages and room for the answers."""
    evaluation = run.evaluation
    if not evaluation.metrics:
        for name in ("generate_rows", "generate_seconds", "max_new_tokens"):
            if typed := draft.typed.get(f"evaluation.{name}"):
                yield Finding(
                    f"{typed} has no effect: no answers are written without --evaluation.metrics",
                    is_error=False,
                )
        return
    flag = f"--evaluation.metrics {','.join(evaluation.metrics)}"
    if run.task.name not in _WRITING_TASKS:
        yield Finding(
            f"{flag}: for models that write text, and --task {run.task.name} trains none; its own"
            " metrics are always given. Leave it out"
        )
    elif run.data.eval is None and run.data.eval_fraction == 0:
        yield Finding(
            f"{flag} needs evaluation data. Give --eval_data, or --data.eval_fraction above 0"
        )
    try:
        check_packages(evaluation.metrics, "--evaluation.metrics")
    except ConfigError as error:
        yield Finding(str(error))
    places = draft.facts.max_position_embeddings if draft.facts else None
    if places is not None and evaluation.max_new_tokens >= places:
        yield Finding(
            f"--evaluation.max_new_tokens {evaluation.max_new_tokens}: the model has {places}"
            " positions for a prompt and its answer. Use fewer"
        )


def check_named_metrics(draft: Draft, run: Run) -> Iterator[Finding]:
    """A metric of answers decides only where answers are written."""
    for metric, flag in list_goals(run):
        maker = MAKERS.get(strip_prefix(metric).partition("/")[0])
        # F1 is a metric of classes, too.
        if maker and maker not in run.evaluation.metrics and run.task.name in _WRITING_TASKS:
            yield Finding(
                f"{flag}: compares written answers, and none are written. Give --evaluation.metrics"
                f" {maker}"
            )


def warn_evaluation_without_data(draft: Draft, run: Run) -> Iterator[Finding]:
    """Evaluation needs held-out data."""
    if run.data.eval is None and run.data.eval_fraction == 0 and run.evaluation.eval_steps:
        yield Finding(
            f"--eval_steps {run.evaluation.eval_steps} has no effect: --data.eval_fraction is 0 "
            "and there is no --eval_data",
            is_error=False,
        )


def warn_held_out_share_without_effect(draft: Draft, run: Run) -> Iterator[Finding]:
    """With evaluation data of its own, nothing is held out."""
    typed = draft.typed.get("data.eval_fraction")
    if typed is not None and run.data.eval is not None:
        yield Finding(f"{typed} has no effect: --eval_data is given", is_error=False)


def warn_revision_without_effect(draft: Draft, run: Run) -> Iterator[Finding]:
    """Only hub models have revisions."""
    typed = draft.typed.get("model.revision")
    is_here = run.model.name in BUILTIN_MODELS or Path(run.model.name).expanduser().exists()
    if typed is not None and is_here:
        yield Finding(f"{typed} has no effect: {run.model.name} is not a hub model", is_error=False)


def check_chat_template(draft: Draft, run: Run) -> Iterator[Finding]:
    """The template is read when the data are built; a missing file is better found here."""
    name = run.model.chat_template
    if name is None or name in TEMPLATES or Path(name).expanduser().is_file():
        return
    near = suggest(name, TEMPLATES)
    yield Finding(
        f"--model.chat_template {name}: no such file{near}; give a Jinja file or one of"
        f" {', '.join(TEMPLATES)}"
    )


def check_freeze(draft: Draft, run: Run) -> Iterator[Finding]:
    """Patterns are regular expressions; what they match is known once the model is there."""
    for pattern in run.model.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            yield Finding(
                f"--model.freeze {pattern}: no regular expression ({error}). Commas separate"
                " patterns; write one that has a comma as JSON, such as '[\"layers.{1,2}\"]'"
            )


def check_layer_decay(draft: Draft, run: Run) -> Iterator[Finding]:
    """DeepSpeed's own schedules give every parameter the same learning rate."""
    kind = draft.get("scheduler.type")
    if run.model.layer_decay is not None and kind:
        yield Finding(
            f'--model.layer_decay {run.model.layer_decay:g} with scheduler.type = "{kind}"'
            f" ({draft.where('scheduler.type')}), which gives all layers one learning rate. Drop"
            " the scheduler block and use --optim.lr_scheduler_type"
        )


def check_averaging(draft: Draft, run: Run) -> Iterator[Finding]:
    """Weights beside the trained ones are in host memory, in fp32, and there is one such set."""
    flag = _find_averaging(run)
    if flag is None:
        return
    if run.trainer.ema and run.trainer.reptile.inner_steps:
        yield Finding(
            f"{flag} with --trainer.reptile.inner_steps {run.trainer.reptile.inner_steps}: only one"
            " of the two can say which weights are exported. Keep one"
        )
    for part in ("offload_optimizer", "offload_param"):
        path = f"{_ZERO}.{part}.device"
        if draft.get(path) == "nvme":
            yield Finding(
                f"{flag} with {path} = nvme ({draft.where(path)}): needs the weights in memory"
                " after each step. Use --config ds_configs/zero3_offload.json, or leave it out"
            )
    path = "bf16.bf16_master_weights_and_grads"
    if draft.get(path):
        yield Finding(
            f"{flag} with {path} ({draft.where(path)}): weights of 8 significant bits cannot follow"
            " an average. Drop one of the two"
        )


def _find_averaging(run: Run) -> str | None:
    if run.trainer.ema:
        return f"--trainer.ema {run.trainer.ema:g}"
    steps = run.trainer.reptile.inner_steps
    return f"--trainer.reptile.inner_steps {steps}" if steps else None


def check_reptile(draft: Draft, run: Run) -> Iterator[Finding]:
    """Meta-learning goes through whole tasks, one after the other, each a part of the data."""
    steps, limit = run.trainer.reptile.inner_steps, run.trainer.max_steps
    if not steps:
        for name in ("outer_rate", "outer_schedule"):
            if typed := draft.typed.get(f"trainer.reptile.{name}"):
                yield Finding(
                    f"{typed} has no effect: --trainer.reptile.inner_steps is 0", is_error=False
                )
        return
    flag = f"--trainer.reptile.inner_steps {steps}"
    if run.data.loading.streaming:
        yield Finding(
            f"{flag}: parts are drawn at random, which needs all rows at once. Leave"
            " --data.loading.streaming out"
        )
    if len(split_spec(run.data.train)) == 1:
        yield Finding(
            f"{flag}: each part of --data is a task, and --data {run.data.train} is one part. Give"
            " several, separated by commas"
        )
    if limit is not None and limit % steps:
        yield Finding(
            f"--max_steps {limit} is no multiple of {flag}: the last {limit % steps} steps would"
            f" have no effect on the exported model. Use {-(-limit // steps) * steps}"
        )


def check_shard_size(draft: Draft, run: Run) -> Iterator[Finding]:
    """The size is text with a unit; a bad one would only be found at the export."""
    try:
        parse_bytes(run.checkpoint.max_shard_size)
    except ValueError as error:
        yield Finding(f"--checkpoint.max_shard_size: {error}")


def warn_bf16_accumulation(draft: Draft, run: Run) -> Iterator[Finding]:
    """Small addends round away in a long bf16 sum."""
    path = "data_types.grad_accum_dtype"
    steps = run.trainer.gradient_accumulation_steps
    if steps >= _MANY_MICRO_STEPS and draft.get(path) == "bf16":
        yield Finding(
            f"{path} = bf16 ({draft.where(path)}) with {steps} accumulation steps: small gradients "
            'round away in the sum. Write "fp32", or drop the line',
            is_error=False,
        )


def warn_gathered_weights_on_nvme(draft: Draft, run: Run) -> Iterator[Finding]:
    """Weights on NVMe that stay gathered hold a buffer each; without one left the run ends."""
    path = f"{_ZERO}.stage3_max_live_parameters"
    live = draft.get(path)
    if draft.get(f"{_ZERO}.offload_param.device") == "nvme" and isinstance(live, int) and live:
        buffers = draft.get(f"{_ZERO}.offload_param.buffer_count")
        yield Finding(
            f"{path} = {live:,} ({draft.where(path)}) with weights on NVMe: each one that stays"
            f" gathered holds one of {buffers} buffers, and DeepSpeed ends the run when none is"
            " left. Write 0 there and in stage3_max_reuse_distance",
            is_error=False,
        )


RULES: tuple[Rule, ...] = (
    check_stage,
    refuse_nvme_below_stage_three,
    refuse_two_precisions,
    refuse_eight_bit_on_nvme,
    check_host_choices,
    check_second_shards,
    check_quantised_communication,
    check_data,
    check_task,
    check_several_tasks,
    check_distillation,
    check_glue,
    check_streaming,
    check_swap_buffers,
    check_warmup,
    check_schedule_arguments,
    check_chat_template,
    check_freeze,
    check_layer_decay,
    check_averaging,
    check_reptile,
    check_shard_size,
    check_early_stopping,
    check_best,
    check_answers,
    check_named_metrics,
    warn_sequence_longer_than_positions,
    warn_epochs_without_effect,
    warn_evaluation_without_data,
    warn_held_out_share_without_effect,
    warn_revision_without_effect,
    warn_bf16_accumulation,
    warn_gathered_weights_on_nvme,
)
"""Every rule, errors first."""


def describe_rules() -> list[tuple[str, str]]:
    """Return (name, meaning) of every rule, for the documentation."""
    return [(_name(rule), (rule.__doc__ or "").split("\n")[0]) for rule in RULES]


def _name(rule: Any) -> str:
    return str(rule.__name__)
