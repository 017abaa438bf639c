"""One case per rule; a rule without a case fails here."""

import json
import sys

import pytest

from bigft.cli import parse
from bigft.errors import ConfigError
from bigft.run.resolve import resolve
from bigft.run.rules import RULES, describe_rules

ZERO = "--ds.zero_optimization"

# Rule -> (config, flags, part of its text).
ERRORS = {
    "check_stage": ("zero2", f"{ZERO}.offload_param.device=cpu", "needs zero_optimization.stage 3"),
    "refuse_nvme_below_stage_three": (
        "zero2",
        f"{ZERO}.offload_optimizer.device=nvme",
        "needs zero_optimization.stage 3, not 2",
    ),
    "refuse_two_precisions": (
        "zero3",
        "--ds.bf16.enabled=true --ds.fp16.enabled=true",
        "both true",
    ),
    "refuse_eight_bit_on_nvme": (
        "zero3_nvme",
        "--optim adamw_8bit --ds.bf16.enabled=false --ds.fp16.enabled=true",
        "diverges",
    ),
    "check_host_choices": (
        "zero3",
        "--optim adamw_8bit --optim.master_bits 24",
        "only bigft's optimizer in host memory",
    ),
    "check_streaming": (
        "zero3",
        "--data.loading.streaming true --eval_data x",
        "Give --max_steps",
    ),
    "check_task": (
        "zero3",
        "--task classification --packing best_fit",
        "needs a sequence of its own",
    ),
    "check_several_tasks": ("zero3", "--task multitask", "needs two tasks or more"),
    "check_glue": (
        "zero3",
        "--task classification --data glue/stsb",
        "--data glue/stsb with --task classification: its labels are for --task regression",
    ),
    "check_data": ("zero3", "--data.clean.augment.swap 0.1", "augment.copies is 0"),
    "check_swap_buffers": ("zero3_nvme", f"{ZERO}.offload_optimizer.buffer_count=3", "at least 4"),
    "check_warmup": ("zero3", "--max_steps 5 --optim.warmup_steps 6", "never reach its peak"),
    "check_schedule_arguments": (
        "zero3",
        "--optim.lr_scheduler_type cosine_with_min_lr",
        "needs a minimum",
    ),
    "check_second_shards": (
        "zero3_nvme",
        f"{ZERO}.zero_hpz_partition_size=2",
        "= 2 (--ds.zero_optimization.zero_hpz_partition_size): DeepSpeed keeps the second shards",
    ),
    "check_quantised_communication": (
        "zero3",
        f"{ZERO}.zero_quantized_nontrainable_weights=true",
        "as codes of 8 bits without their scales. Drop it",
    ),
    "check_chat_template": ("zero3", "--model.chat_template nowhere.jinja", "no such file"),
    "check_layer_decay": (
        "zero3",
        "--model.layer_decay 0.9 --max_steps 5 --ds.scheduler.type=WarmupLR",
        "gives all layers one learning rate",
    ),
    "check_averaging": (
        "zero3_nvme",
        "--trainer.ema 0.999",
        "--trainer.ema 0.999 with zero_optimization.offload_optimizer.device = nvme",
    ),
    "check_reptile": (
        "zero3",
        "--data a,b --max_steps 7 --trainer.reptile.inner_steps 5",
        "Use 10",
    ),
    "check_freeze": ("zero3", "--model.freeze layers.(0", "no regular expression"),
    "check_distillation": ("zero3", "--task distillation", "who teaches"),
    "check_shard_size": ("zero3", "--checkpoint.max_shard_size big", "is not a size"),
    "check_early_stopping": ("zero3", "--trainer.early_stopping loss:3", "Give --eval_steps"),
    "check_best": (
        "zero3",
        "--checkpoint.best loss --eval_steps 4 --save_steps 6",
        "Use --save_steps 8",
    ),
    "check_answers": (
        "zero3",
        "--task classification --evaluation.metrics f1",
        "--evaluation.metrics f1: for models that write text, and --task classification",
    ),
    "check_named_metrics": (
        "zero3",
        "--checkpoint.best eval_rougeL --eval_steps 4 --save_steps 4",
        "--checkpoint.best eval_rougeL: compares written answers, and none are written. Give",
    ),
}
WARNINGS = {
    "warn_sequence_longer_than_positions": ("zero3", "--max_length 4096", "2048"),
    "warn_epochs_without_effect": ("zero3", "--max_steps 5 --num_train_epochs 2", "no effect"),
    "warn_evaluation_without_data": (
        "zero3",
        "--eval_steps 5 --data.eval_fraction 0",
        "--eval_steps 5 has no effect",
    ),
    "warn_held_out_share_without_effect": (
        "zero3",
        "--eval_data x --data.eval_fraction 0.1",
        "no effect",
    ),
    "warn_revision_without_effect": ("zero3", "--model.revision main", "not a hub model"),
    "warn_bf16_accumulation": (
        "zero3",
        "--gradient_accumulation_steps 8 --ds.data_types.grad_accum_dtype=bf16",
        "round away",
    ),
    "warn_gathered_weights_on_nvme": (
        "zero3_nvme",
        f"{ZERO}.stage3_max_live_parameters=1000000",
        "holds one of 5 buffers",
    ),
}


def resolved(config, line):
    return resolve(parse(["train", "--config", f"ds_configs/{config}.json", *line.split()]), {})


@pytest.mark.parametrize(("config", "line", "text"), ERRORS.values(), ids=ERRORS)
def test_rule_refuses(config, line, text):
    with pytest.raises(ConfigError) as caught:
        resolved(config, line)
    assert text in str(caught.value)


@pytest.mark.parametrize(("config", "line", "text"), WARNINGS.values(), ids=WARNINGS)
def test_rule_warns(config, line, text):
    assert any(text in warning for warning in resolved(config, line).warnings)


def test_every_rule_has_a_case_and_a_meaning():
    assert {rule.__name__ for rule in RULES} == {*ERRORS, *WARNINGS}
    assert all(meaning for _, meaning in describe_rules())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--trainer.ema 0.9 --trainer.reptile.inner_steps 5 --data a,b", "only one of the two"),
        ("--trainer.ema 0.9 --ds.bf16.bf16_master_weights_and_grads=true", "8 significant bits"),
        ("--trainer.reptile.inner_steps 5 --data a", "--data a is one part"),
        (
            "--trainer.reptile.inner_steps 5 --data a,b --max_steps 5 --eval_data x"
            " --data.loading.streaming true",
            "needs all rows at once",
        ),
    ],
)
def test_weights_beside_the_trained_ones_are_not_had_everywhere(line, text):
    with pytest.raises(ConfigError) as caught:
        resolved("zero3", line)
    assert text in str(caught.value)


def test_parameters_on_nvme_have_no_average():
    line = f"--trainer.ema 0.9 {ZERO}.offload_optimizer.device=cpu"
    with pytest.raises(ConfigError, match=r"offload_param\.device = nvme"):
        resolved("zero3_nvme", line)


def test_reptile_has_no_momentum_unless_it_is_asked_for():
    line = "--trainer.reptile.inner_steps 5 --data a,b --max_steps 10"
    assert resolved("zero3", line).run.optim.adam_beta1 == 0
    assert resolved("zero3", f"{line} --optim.adam_beta1 0.5").run.optim.adam_beta1 == 0.5
    warnings = resolved("zero3", "--trainer.reptile.outer_rate 0.5").warnings
    assert any("inner_steps is 0" in text for text in warnings)


EVALUATED = "--eval_steps 4 --save_steps 8"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--trainer.early_stopping loss --eval_steps 4", "'loss' is no METRIC:PATIENCE"),
        (f"--trainer.early_stopping loss:3 --data.eval_fraction 0 {EVALUATED}", "Give --eval_data"),
        (f"--checkpoint.best loss --data.eval_fraction 0 {EVALUATED}", "Give --eval_data"),
        ("--checkpoint.best loss --save_steps 8", "Give --eval_steps"),
        ("--checkpoint.best loss --eval_steps 4", "Use --save_steps 4"),
    ],
)
def test_judging_evaluations_needs_them(line, text):
    with pytest.raises(ConfigError) as caught:
        resolved("zero3", line)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--evaluation.metrics f1 --data.eval_fraction 0", "Give --eval_data"),
        ("--evaluation.metrics f1 --evaluation.max_new_tokens 2048", "has 2048 positions"),
        ("--evaluation.metrics f1,meteor", "input should be 'bleu', 'chrf', 'rouge'"),
        ("--trainer.early_stopping chrf:3 --eval_steps 4", "Give --evaluation.metrics chrf"),
    ],
)
def test_answers_are_asked_for_where_they_can_be_had(line, text):
    with pytest.raises(ConfigError) as caught:
        resolved("zero3", line)
    assert text in str(caught.value)


def test_tasks_of_glue_are_evaluated_on_their_development_sets():
    line = "--task classification --data glue/mnli"
    both = "glue/mnli@validation_matched,glue/mnli@validation_mismatched"
    assert resolved("zero3", line).run.data.eval == both
    assert resolved("zero3", f"{line}:2,glue/rte").run.data.eval == f"{both},glue/rte@validation"
    assert resolved("zero3", f"{line} --eval_data x").run.data.eval == "x"
    for other in (f"{line} --data.eval_fraction 0.1", f"{line}@train[:9]", f"{line},mine.jsonl"):
        assert resolved("zero3", other).run.data.eval is None
    (warning,) = resolved("zero3", "--data glue/cola").warnings
    assert "For GLUE's own metrics (matthews) use --task classification" in warning


def test_a_missing_package_of_metrics_is_found_before_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ConfigError, match=r"--evaluation.metrics rouge: the package rouge-score"):
        resolved("zero3", "--evaluation.metrics rouge")


def test_metrics_of_answers_that_are_asked_for_may_decide():
    line = "--evaluation.metrics rouge,f1 --eval_steps 4 --save_steps 4"
    for goal in ("--checkpoint.best eval_rouge1", "--trainer.early_stopping f1/part:3"):
        resolved("zero3", f"{line} {goal}")
    resolved("zero3", "--task classification --checkpoint.best f1 --eval_steps 4 --save_steps 4")
    (warning,) = resolved("zero3", "--evaluation.generate_rows 5").warnings
    assert "--evaluation.generate_rows=5 has no effect" in warning


def test_early_stopping_says_when_the_best_is_not_kept():
    stopping = "--trainer.early_stopping loss:3 --eval_steps 4"
    for line, is_said in (("", True), ("--save_steps 6", True), ("--save_steps 8", False)):
        warnings = " ".join(resolved("zero3", f"{stopping} {line}").warnings)
        assert ("the model of the last step will be exported" in warnings) is is_said


def test_stage_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="must be 0, 1, 2 or 3"):
        resolved("zero3", f"{ZERO}.stage=4")


def test_broken_warm_up_steps_are_refused():
    with pytest.raises(ConfigError, match="write a whole one"):
        resolved("zero3", "--optim.warmup_steps 1.5")


STREAMING = "--data.loading.streaming true"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--eval_data x", "Give --max_steps"),
        ("--max_steps 5", "Give --eval_data, or --data.eval_fraction 0"),
        ("--max_steps 5 --eval_data x --data.clean.duplicates drop_exact", "all rows at once"),
        (
            "--max_steps 5 --eval_data x --data.clean.test_fraction 0.1",
            "test_fraction is 0.1, which",
        ),
        ("--max_steps 5 --eval_data x --data a:2,b", "--data a:2,b has weights, which"),
    ],
)
def test_a_stream_is_asked_for_nothing_that_needs_all_rows(line, text):
    with pytest.raises(ConfigError) as caught:
        resolved("zero3", f"{STREAMING} {line}")
    assert text in str(caught.value)


def test_a_stream_with_what_it_needs_passes():
    skip = "--data.on_bad_row skip"
    for line in ("--max_steps 5 --eval_data x", "--max_steps 5 --data.eval_fraction 0"):
        text = " ".join(resolved("zero3", f"{STREAMING} {line}").warnings)
        assert "a bad row will end the run where it stands" in text
        assert "streaming" not in " ".join(resolved("zero3", f"{STREAMING} {line} {skip}").warnings)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--task classification --packing best_fit", "needs a sequence of its own"),
        ("--task seq2seq --data.overlong split", "says nothing about the rest"),
        ("--task.focal_gamma 2 --task.label_smoothing 0.1", "pull in opposite directions"),
        (
            "--task classification --data.loading.streaming true --max_steps 1 --eval_data x",
            "Name them: --task.labels",
        ),
        ("--task classification --task.labels a,b,a", "a name stands twice"),
        ("--task regression --task.labels a,b", "that is of classification"),
        (
            "--task distillation --task.distillation.teacher x --task.distillation.logits y",
            "task.distillation.top_k 64",
        ),
        (
            "--task distillation --task.distillation.teacher x --task.distillation.logits y"
            " --task.distillation.top_k 4 --data.loading.streaming true --max_steps 1"
            " --eval_data x",
            "a stream has no rows",
        ),
        ("--task.distillation.teacher x", "that is of distillation"),
    ],
)
def test_settings_that_do_not_go_with_the_task_are_refused(line, text):
    with pytest.raises(ConfigError, match=text):
        resolved("zero3", line)


@pytest.mark.parametrize("name", ["classification", "regression", "seq2seq", "masked_lm"])
def test_defaults_follow_from_the_task(name):
    run = resolved("zero3", f"--task {name}").run
    assert run.data.packing == "none"
    assert run.data.train.startswith("builtin/")
    assert run.model.name.startswith("builtin/")
    typed = resolved("zero3", f"--task {name} --data x.jsonl --model builtin").run
    assert (typed.data.train, typed.model.name) == ("x.jsonl", "builtin")


_ONE = {"task": "classification", "data": "builtin/modules"}
_TWO = {"task": "regression", "data": "builtin/readability"}


def _refuse(parts: dict, *flags: str) -> str:
    argv = ["train", "--config", "ds_configs/zero3.json", "--task", "multitask"]
    with pytest.raises(ConfigError) as caught:
        resolve(parse([*argv, "--task.parts", json.dumps(parts), *flags]), {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("parts", "flags", "texts"),
    [
        ({"a": _ONE}, "", ["For one alone: --task classification"]),
        (
            {"a": {**_ONE, "task": "clasification"}, "b": {"task": "regression"}},
            "",
            ["a.task: input should be", "did you mean classification?", "b.data: field required"],
        ),
        ({"a b": _ONE, "b": _TWO}, "", ["a b.[key]: string should match pattern"]),
        (
            {"a": _ONE, "b": {**_TWO, "labels": ["x", "x"]}},
            "--packing best_fit --data foo.jsonl",
            [
                "Use --packing none",
                "--task.parts.b.labels x,x: --task regression has no such setting",
                "--task.parts.b.labels x,x: a name stands twice",
                "--data.train foo.jsonl: the data of several tasks are named in task.parts",
            ],
        ),
        (
            {"a": {**_ONE, "eval": "x"}, "b": {**_TWO, "data": "x,y"}},
            "--data.loading.streaming true --task.labels a,b --data.clean.duplicates drop_exact",
            [
                "--data.clean.duplicates drop_exact: where two tasks read the same texts",
                "b without `eval`, the others with",
                "--task.parts.b.data 'x,y': names 2 parts of data",
                "no mixture of tasks",
                "Write it for the task that it is for: --task.parts.NAME.labels",
            ],
        ),
        (
            {"a": _ONE, "b": {**_TWO, "task": "causal_lm"}},
            "--model builtin/bert",
            ["--task.parts.b.task causal_lm: --model builtin/bert (ModernBertForMaskedLM) is an"],
        ),
        (
            {"a": _ONE, "b": {**_TWO, "task": "masked_lm"}},
            "--model builtin",
            ["--task.parts.b.task masked_lm: --model builtin (LlamaForCausalLM) is a decoder"],
        ),
        ({"a": _ONE, "b": _TWO}, "--model builtin/t5", ["is an encoder and decoder"]),
        (
            {"a": {**_ONE, "data": "glue/stsb"}, "b": _TWO},
            "",
            ["--task.parts.a.data glue/stsb with task classification: its labels are for task reg"],
        ),
    ],
)
def test_several_tasks_that_cannot_be_are_refused_all_at_once(parts, flags, texts):
    found = _refuse(parts, *flags.split())
    for text in texts:
        assert text in found


def test_tasks_of_glue_may_be_among_several(tmp_path):
    """Each part says itself what it is evaluated on; nothing is derived behind its back."""
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        "task: multitask\ntask.parts:\n"
        "  a: {task: classification, data: glue/sst2, eval: glue/sst2@validation}\n"
        "  b: {task: regression, data: glue/stsb, eval: glue/stsb@validation}\n"
    )
    line = ["train", "--config", "ds_configs/zero3.json", "--recipe", str(recipe)]
    found = resolve(parse(line), {})
    assert found.run.data.eval == "glue/sst2@validation,glue/stsb@validation"
    assert not any("labels are read as words" in text for text in found.warnings)


def test_several_tasks_bring_their_data_and_a_model(tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        "task: multitask\ntask.parts:\n"
        "  a: {task: classification, data: 'x.jsonl:3', eval: e.jsonl}\n"
        "  b: {task: regression, data: y.jsonl, eval: f.jsonl}\n"
    )
    line = ["train", "--config", "ds_configs/zero3.json", "--recipe", str(recipe)]
    run = resolve(parse([*line, "--task.parts.b.weight", "0.25"]), {}).run
    assert (run.data.train, run.data.eval) == ("x.jsonl:3,y.jsonl", "e.jsonl,f.jsonl")
    assert (run.data.loading.names, run.data.packing) == (["a", "b"], "none")
    assert run.model.name == "builtin/bert"
    assert [part.weight for part in run.task.parts.values()] == [1.0, 0.25]
    # The record of a run holds every setting, and gives the same run.
    again = tmp_path / "run.yaml"
    again.write_text(json.dumps(run.model_dump(mode="json")))
    repeated = resolve(parse([*line[:3], "--recipe", str(again)]), {}).run
    assert repeated.task == run.task
    assert repeated.data == run.data
