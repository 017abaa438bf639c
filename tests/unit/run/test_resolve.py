"""Precedence, clashes, the batch equation, "auto", and repeating a run from its record."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from bigft.cli import parse
from bigft.config.deepspeed import AUTO, find_value, leaves, set_value, shipped_configs
from bigft.errors import CheckpointError, ConfigError
from bigft.run.record import describe_environment, record
from bigft.run.report import render_resolved
from bigft.run.resolve import default_output_dir, resolve, with_output_dir

ZERO3 = {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 3}}


@pytest.fixture
def run(tmp_path):
    """Resolve a command line against a JSON given as dotted paths."""

    def resolve_line(line="", ranks=1, **paths):
        tree = json.loads(json.dumps(ZERO3))
        for path, value in paths.items():
            set_value(tree, path.replace("__", "."), value)
        file = tmp_path / "ds.json"
        file.write_text(json.dumps(tree))
        words = ["train", "--config", str(file), *line.split()]
        return resolve(parse(words), {"WORLD_SIZE": str(ranks)})

    return resolve_line


def refusal(run, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        run(*args, **kwargs)
    return str(caught.value)


def test_flag_wins_over_recipe_and_recipe_over_default(run, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 5\nmax_length: 99\n")
    resolved = run(f"--recipe {recipe} --seed 6")
    assert (resolved.run.trainer.seed, resolved.run.data.max_length) == (6, 99)
    assert resolved.origin["trainer.seed"] == "flag --seed"
    assert resolved.origin["data.max_length"] == f"recipe {recipe}"
    assert resolved.origin["data.packing"] == "default"


def test_recipe_may_name_the_config(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("config: ds_configs/zero3.json\n")
    assert resolve(parse(["train", "--recipe", str(recipe)]), {}).config == "ds_configs/zero3.json"


def test_ds_flag_wins_over_the_file(run):
    resolved = run("--ds.zero_optimization.stage=2 --ds.zero_optimization.reduce_bucket_size 1e7")
    assert resolved.ds["zero_optimization"]["stage"] == 2
    assert resolved.ds["zero_optimization"]["reduce_bucket_size"] == 10_000_000
    assert resolved.origin["ds.zero_optimization.stage"] == "flag --ds.zero_optimization.stage"


def test_concrete_json_is_adopted_by_an_untouched_run(run):
    params = {"lr": 2e-5, "betas": [0.8, 0.95], "weight_decay": "0.2"}
    resolved = run(optimizer={"type": "AdamW", "params": params}, gradient_clipping=0.5)
    optim = resolved.run.optim
    assert (optim.learning_rate, optim.adam_beta1, optim.adam_beta2) == (2e-5, 0.8, 0.95)
    assert (optim.weight_decay, optim.max_grad_norm) == (0.2, 0.5)
    assert resolved.origin["optim.learning_rate"].endswith("ds.json: optimizer.params.lr")
    assert resolved.ds["optimizer"]["params"]["eps"] == 1e-8


def test_auto_and_absent_are_filled_from_the_run(run):
    line = "--learning_rate 3e-5 --optim.adam_beta2 0.95 --optim.max_grad_norm 2"
    resolved = run(line, optimizer={"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}})
    params = resolved.ds["optimizer"]["params"]
    assert params == {"lr": 3e-5, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01}
    assert resolved.ds["gradient_clipping"] == 2.0


def test_every_clash_is_listed_with_both_sources(run):
    text = refusal(
        run,
        "--learning_rate 5e-5 --optim.max_grad_norm 1 --per_device_train_batch_size 3",
        optimizer={"type": "AdamW", "params": {"lr": 1e-4}},
        gradient_clipping=0.5,
        train_micro_batch_size_per_gpu=2,
    )
    assert "optimizer.params.lr = 0.0001" in text
    assert "--learning_rate=5e-5" in text
    assert "gradient_clipping = 0.5" in text
    assert "train_micro_batch_size_per_gpu = 2" in text
    assert "ds.json" in text
    assert 'Set the JSON value to "auto"' in text


def test_equal_answers_are_no_clash(run):
    resolved = run(
        "--learning_rate 1e-4 --optim adamw --per_device_train_batch_size 8",
        optimizer={"type": "AdamW", "params": {"lr": 0.0001}},
        train_micro_batch_size_per_gpu="8",
    )
    assert resolved.run.optim.learning_rate == resolved.ds["optimizer"]["params"]["lr"] == 1e-4
    assert resolved.ds["train_micro_batch_size_per_gpu"] == 8


def test_optimizer_typed_twice_is_a_clash(run):
    text = refusal(run, "--optim adamw_8bit", optimizer={"type": "AdamW"})
    assert 'optimizer.type = "AdamW"' in text
    assert "--optim=adamw_8bit" in text


def test_other_optimizer_in_the_json_is_said(run):
    resolved = run(optimizer={"type": "Lion", "params": {"lr": 1e-4}})
    assert any("--optim has no effect" in warning for warning in resolved.warnings)


def test_schedule_typed_twice_is_a_clash(run):
    schedule = {"type": "WarmupLR", "params": {}}
    text = refusal(run, "--optim.lr_scheduler_type cosine", scheduler=schedule)
    assert 'scheduler.type = "WarmupLR"' in text


def test_schedule_in_the_json_is_filled(run):
    params = {"warmup_num_steps": "auto", "total_num_steps": "auto", "warmup_max_lr": "auto"}
    line = "--max_steps 50 --optim.warmup_steps 0.1 --learning_rate 2e-4"
    resolved = run(line, scheduler={"type": "WarmupDecayLR", "params": params})
    assert resolved.ds["scheduler"]["params"] == {
        "warmup_num_steps": 5,
        "total_num_steps": 50,
        "warmup_max_lr": 2e-4,
    }
    assert resolved.run.optim.warmup_steps == 5


def test_schedule_without_known_length_is_refused(run):
    schedule = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}
    assert "drop the scheduler block" in refusal(run, scheduler=schedule)


@pytest.mark.parametrize(
    ("train", "micro", "accumulation", "ranks", "expected"),
    [
        (None, None, None, 1, (1, 1, 1)),
        (None, 2, 3, 4, (24, 2, 3)),
        (24, 2, None, 4, (24, 2, 3)),
        (24, None, 3, 4, (24, 2, 3)),
        (24, None, None, 4, (24, 1, 6)),
        ("auto", 2, "auto", 1, (2, 2, 1)),
        (24, 2, 3, 4, (24, 2, 3)),
    ],
)
def test_batch_equation_is_solved_from_any_two(run, train, micro, accumulation, ranks, expected):
    values = {
        "train_batch_size": train,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }
    resolved = run(ranks=ranks, **{path: v for path, v in values.items() if v is not None})
    assert tuple(resolved.ds[path] for path in values) == expected
    trainer = resolved.run.trainer
    assert trainer.per_device_train_batch_size == expected[1]
    assert trainer.gradient_accumulation_steps == expected[2]


def test_batch_equation_takes_flags(run):
    resolved = run("--per_device_train_batch_size 4", ranks=2, train_batch_size=64)
    assert resolved.run.trainer.gradient_accumulation_steps == 8
    assert "micro-batch 4 x ranks 2" in resolved.announced[0]


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("--per_device_train_batch_size 3", "is no multiple of micro-batch 3 x ranks 2 = 6"),
        (
            "--per_device_train_batch_size 2 --gradient_accumulation_steps 2",
            "is not micro-batch 2 x accumulation 2 x ranks 2 = 8",
        ),
    ],
)
def test_impossible_batches_are_refused_with_the_numbers(run, line, numbers):
    text = refusal(run, line, ranks=2, train_batch_size=20)
    assert "train_batch_size 20" in text
    assert numbers in text


@pytest.mark.parametrize("file", shipped_configs(), ids=lambda file: file.stem)
def test_shipped_configs_resolve_without_auto(file, tmp_path):
    resolved = resolve(parse(["train", "--config", str(file)]), {"WORLD_SIZE": "2"})
    ds = with_output_dir(resolved, tmp_path).ds
    assert AUTO not in [value for _, value in leaves(ds)]
    assert not resolved.warnings
    assert "optimizer" not in ds
    for path in ("gradient_clipping", "data_types.grad_accum_dtype", "wall_clock_breakdown"):
        assert find_value(ds, path) is not None


def test_shipped_configs_are_six():
    names = {"zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme"}
    assert {file.stem for file in shipped_configs()} == names


def test_sizes_come_from_the_model(tmp_path):
    resolved = resolve(parse(["train", "--config", "ds_configs/zero3_nvme.json"]), {})
    zero = resolved.ds["zero_optimization"]
    assert zero["reduce_bucket_size"] == 384 * 384
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * 384 * 384)
    assert zero["stage3_param_persistence_threshold"] == 3840
    assert zero["offload_param"]["buffer_size"] >= 4096 * 384


def test_nvme_goes_below_the_run_folder(tmp_path):
    resolved = resolve(parse(["train", "--config", "ds_configs/zero3_nvme.json"]), {})
    assert resolved.run.output_dir == ""
    placed = with_output_dir(resolved, tmp_path / "out")
    for part in ("offload_param", "offload_optimizer"):
        path = placed.ds["zero_optimization"][part]["nvme_path"]
        assert path == str(tmp_path / "out" / "nvme")
    assert resolved.ds["zero_optimization"]["offload_param"]["nvme_path"] == AUTO
    words = ["train", "--config", "ds_configs/zero3_nvme.json", "--output_dir", str(tmp_path)]
    typed = resolve(parse(words), {})
    assert typed.ds["zero_optimization"]["offload_param"]["nvme_path"] == str(tmp_path / "nvme")


def test_pin_memory_is_written_out(run):
    resolved = run(zero_optimization__offload_param={"device": "cpu"})
    assert resolved.ds["zero_optimization"]["offload_param"]["pin_memory"] is True
    assert "offload_optimizer" not in resolved.ds["zero_optimization"]


@pytest.mark.parametrize(
    ("line", "stage", "fp16", "dtype"),
    [
        ("", 3, None, "bf16"),
        ("--gradient_accumulation_steps 4", 3, None, "fp32"),
        ("--gradient_accumulation_steps 4", 0, None, "bf16"),
        ("", 3, True, "fp16"),
        ("--ds.bf16.enabled=false", 3, None, "fp32"),
        ("--gradient_accumulation_steps 4", 3, True, "fp32"),
    ],
)
def test_accumulation_format_is_written_out(run, line, stage, fp16, dtype):
    extra = {"fp16__enabled": fp16} if fp16 else {}
    resolved = run(line, zero_optimization__stage=stage, **extra)
    assert resolved.ds["data_types"]["grad_accum_dtype"] == dtype
    if fp16:
        assert resolved.ds["bf16"]["enabled"] is False


def test_auto_in_an_unknown_place_is_named(run):
    text = refusal(run, zero_optimization__stage3_max_reuse_distance="auto")
    assert 'stage3_max_reuse_distance = "auto"' in text


def test_eight_bit_without_offload_sets_what_it_needs(run):
    ds = run("--optim adamw_8bit").ds
    assert ds["zero_allow_untested_optimizer"] is True
    assert ds["zero_force_ds_cpu_optimizer"] is False
    assert "sub_group_size" not in ds["zero_optimization"]


def test_eight_bit_on_the_host_bounds_its_memory(run):
    offload = {"device": "cpu"}
    resolved = run("--optim adamw_8bit", zero_optimization__offload_optimizer=offload)
    assert resolved.ds["zero_optimization"]["sub_group_size"] == 50_000_000
    assert "sub_group_size" in resolved.announced[0]


def test_eight_bit_contradicted_by_the_json_is_refused(run):
    text = refusal(run, "--optim adamw_8bit", zero_force_ds_cpu_optimizer=True)
    assert "zero_force_ds_cpu_optimizer = true" in text


def test_adamw_leaves_deepspeeds_gates_alone(run):
    ds = run().ds
    assert "zero_force_ds_cpu_optimizer" not in ds
    assert "zero_allow_untested_optimizer" not in ds


def test_learning_rate_depends_on_where_weights_come_from(run, tmp_path):
    from_scratch = run()
    assert from_scratch.run.optim.learning_rate == 3e-4
    assert "random weights" in from_scratch.origin["optim.learning_rate"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    (tmp_path / "m/model.safetensors").write_text("")
    assert run(f"--model {tmp_path}/m").run.optim.learning_rate == 1e-5
    assert run("--learning_rate 1e-5").run.optim.learning_rate == 1e-5


def test_all_kinds_of_problems_are_reported_together(run, tmp_path):
    text = refusal(
        run, "--lr 1 --max_length x --model ./nope --ds.bf16.enable=1", zero_optimisation={}
    )
    for piece in ("5 problems", "--lr", "--max_length=x", "./nope", "bf16.enable", "did you mean"):
        assert piece in text


def test_only_a_damaged_model_keeps_its_own_exit_code(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    with pytest.raises(CheckpointError):
        run(f"--model {tmp_path}")
    assert "2 problems" in refusal(run, f"--model {tmp_path} --lr 1")


def test_hub_is_not_asked_while_something_else_is_wrong(run, monkeypatch):
    monkeypatch.setattr("bigft.models.facts._download", lambda section: pytest.fail("asked"))
    assert "--lr" in refusal(run, "--model owner/name --lr 1")


def test_bad_world_size_is_named(run):
    assert "WORLD_SIZE=two" in refusal(run, ranks="two")


def test_dry_run_is_part_of_the_result(run):
    assert run("--dry_run").dry_run
    assert not run("--dry_run=false").dry_run
    assert "--dry_run=maybe" in refusal(run, "--dry_run=maybe")


@pytest.mark.parametrize(
    ("model", "name"),
    [("builtin", "builtin"), ("Qwen/Qwen3-8B", "Qwen3-8B"), ("/x/tiny/config.json", "tiny")],
)
def test_default_folder_has_time_and_model(model, name, run):
    section = run().run.model.model_copy(update={"name": model})
    settings = run().run.model_copy(update={"model": section})
    folder = default_output_dir(settings, datetime(2026, 1, 2, 3, 4, 5))
    assert folder == Path(f"runs/20260102-030405-{name}")


REPEATS = [
    ("zero3", "--learning_rate 2e-5 --seed 7 --optim.lr_scheduler_kwargs.power 2"),
    ("zero3", "--optim adamw_8bit --gradient_accumulation_steps 4 --monitor.sinks wandb"),
    ("zero3_offload", "--optim adamw_8bit"),
    ("zero3_nvme", "--eval_data none --max_steps 9"),
    ("zero2", "--ds.train_batch_size=8 --ds.optimizer.type=AdamW --learning_rate 1e-4"),
    ("zero1", "--ds.scheduler.type=WarmupCosineLR --max_steps 9 --optim.warmup_steps 0.2"),
    ("zero1", "--ds.optimizer.type=Lion --ds.optimizer.params.lr=1e-4"),
]


@pytest.mark.parametrize(("config", "line"), REPEATS)
def test_a_recorded_run_resolves_to_itself(tmp_path, config, line):
    environ = {"WORLD_SIZE": "2"}
    words = ["train", "--config", f"ds_configs/{config}.json", *line.split()]
    first = with_output_dir(resolve(parse(words), environ), tmp_path / "first")
    record(first, environ, tmp_path / "first")
    saved = tmp_path / "first/resolved"
    assert json.loads((saved / "ds_config.json").read_text()) == first.ds
    again = ["train", "--config", f"{saved}/ds_config.json", "--recipe", f"{saved}/run.yaml"]
    second = resolve(parse(again), environ)
    assert second.run == first.run.model_copy(update={"output_dir": ""})
    # Only the swap folder follows the new run.
    placed = with_output_dir(second, tmp_path / "second")
    moved = json.dumps(placed.ds).replace(f"{tmp_path}/second", f"{tmp_path}/first")
    assert json.loads(moved) == first.ds


def test_record_names_the_repeat_command_and_hides_secrets(tmp_path):
    environ = {"WORLD_SIZE": "1", "NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_secret", "HOME": "/root"}
    resolved = resolve(parse(["train", "--config", "ds_configs/zero3.json"]), environ)
    placed = with_output_dir(resolved, tmp_path)
    record(placed, environ, tmp_path)
    head = (tmp_path / "resolved/run.yaml").read_text()
    assert f"bigft train --config {tmp_path}/resolved/ds_config.json --recipe" in head
    assert f'# output_dir: "{tmp_path}"' in head
    text = (tmp_path / "resolved/environment.json").read_text()
    saved = json.loads(text)
    assert "hf_secret" not in text
    assert saved["environment"] == {"NCCL_DEBUG": "INFO", "WORLD_SIZE": "1"}
    assert saved["packages"]["pydantic"]
    assert saved["command"] == "bigft train --config ds_configs/zero3.json"
    assert describe_environment(placed, environ)["python"].count(".") == 2


def test_report_shows_strategy_batch_and_changes(run):
    page = render_resolved(run("--max_length 4096 --ds.zero_optimization.stage=2", ranks=4))
    assert "ZeRO stage 2" in page
    assert "4 sequences per step = 1 per rank x 1 accumulation steps x 4 ranks" in page
    assert "flag --max_length" in page
    assert "--ds.zero_optimization.stage" in page
    assert "max_position_embeddings 2048" in page


def test_a_tilde_in_a_model_name_is_spelled_out(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    assert run("--model=~/m").run.model.name == str(tmp_path / "m")
