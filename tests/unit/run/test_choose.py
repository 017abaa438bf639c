"""`--config auto`: what is chosen for which machine, what stays as it was written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bigft.cli import parse
from bigft.config.deepspeed import read_json, shipped_configs
from bigft.errors import ConfigError, PlanError
from bigft.planner.forecast import forecast
from bigft.planner.hardware import Given, parse_machine
from bigft.planner.templates import FILES, TEMPLATES, build_template
from bigft.run.job import plan_run
from bigft.run.record import record
from bigft.run.resolve import find_repairs, resolve

QWEN = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "max_position_embeddings": 40960,
}
SERVER = Given(gpus="8xH100", host_memory="2TB", nvme="8TB@7/6")
DESK = Given(gpus="1x24GB", host_memory="128GB", nvme="2TB@7/6")
SMALL = Given(gpus="1x24GB", host_memory="48GB", nvme="2TB@7/6")
TINY = Given(gpus="1x8GB", host_memory="16GB", nvme="50GB@7/6")


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    return tmp_path / "config.json"


def machine_of(given):
    return lambda resolved: parse_machine(given, output_dir=Path("runs"))


def pick(model, given, line="", config="auto"):
    words = ["train", "--model", str(model), "--config", config, *line.split()]
    ranks = parse_machine(given, output_dir=Path("runs")).ranks
    return resolve(parse(words), {"WORLD_SIZE": str(ranks)}, machine_of=machine_of(given))


def test_templates_are_the_files_of_the_same_name():
    shipped = {Path(path).stem: read_json(str(path)) for path in shipped_configs()}
    assert FILES.keys() == shipped.keys()
    assert all(build_template(name) == shipped[name] for name in FILES)
    assert set(FILES) <= set(TEMPLATES)


def test_a_server_keeps_everything_on_its_devices(model):
    chosen = pick(model, SERVER)
    zero = chosen.ds["zero_optimization"]
    assert "offload_optimizer" not in zero
    assert "offload_param" not in zero
    assert chosen.run.optim.name == "adamw"


def test_a_desk_offloads_and_takes_8_bit_moments_where_they_are_worth_it(model):
    chosen = pick(model, DESK)
    zero = chosen.ds["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert chosen.run.optim.name == "adamw_8bit"
    assert chosen.origin["optim.name"] == "chosen by --config auto"
    assert pick(model, DESK, "--optim adamw").run.optim.name == "adamw"


def test_less_memory_goes_to_nvme(model):
    zero = pick(model, SMALL).ds["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "nvme"


def test_what_nothing_fits_is_refused_with_what_comes_nearest(model):
    with pytest.raises(PlanError) as caught:
        pick(model, TINY)
    assert caught.value.exit_code == 4
    for part in ("none of", "comes nearest", "--max_length (1024)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("given", [SERVER, DESK, SMALL])
def test_what_is_chosen_fits_and_nothing_that_fits_is_faster(model, given):
    chosen = pick(model, given)
    machine = machine_of(given)(chosen)
    plan = forecast(*plan_run(chosen, {}, machine))
    assert plan.fits
    for name in FILES:
        file = str(next(path for path in shipped_configs() if Path(path).stem == name))
        other = forecast(*plan_run(pick(model, given, config=file), {}, machine))
        if other.fits and all(d.needed <= 0.95 * (d.available or d.needed) for d in other.demands):
            assert plan.time.total <= other.time.total


def test_the_reasons_are_three_lines(model):
    lines = [line for line in pick(model, DESK).announced if line.startswith("--config auto")]
    assert len(lines) == 3
    assert "the fastest of" in lines[0]
    assert "host memory" in lines[1]
    assert "would take" in lines[2]


def test_what_was_written_stays(model):
    line = "--activation_checkpointing full --ds.zero_optimization.stage=3"
    chosen = pick(model, SERVER, line)
    assert chosen.run.model.activation_checkpointing == "full"
    assert chosen.ds["zero_optimization"]["stage"] == 3
    assert chosen.run.trainer.per_device_train_batch_size == 1


def test_micro_batches_are_chosen_within_the_sequences_of_a_step(model):
    chosen = pick(model, DESK, "--ds.train_batch_size=16")
    trainer = chosen.run.trainer
    assert trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps == 16
    assert trainer.per_device_train_batch_size > 1
    assert chosen.ds["train_batch_size"] == 16
    given = pick(model, DESK, "--gradient_accumulation_steps 16").run.trainer
    assert (given.per_device_train_batch_size, given.gradient_accumulation_steps) == (1, 16)


def test_no_config_means_auto(model):
    words = ["train", "--model", str(model)]
    chosen = resolve(parse(words), {"WORLD_SIZE": "8"}, machine_of=machine_of(SERVER))
    assert chosen.config.startswith("auto (")


def test_other_mistakes_are_still_told(model):
    with pytest.raises(ConfigError, match="--lr: no such setting"):
        pick(model, DESK, "--lr 1")
    with pytest.raises(ConfigError, match="stage3_prefetch"):
        pick(model, DESK, "--ds.zero_optimization.stage3_prefetch=1")


def test_a_model_that_is_not_written_down_is_trained_under_stage_3(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 64}')
    chosen = pick(tmp_path / "config.json", DESK)
    assert chosen.ds["zero_optimization"]["stage"] == 3
    assert "this family is not written down" in chosen.warnings[-1]


def test_a_run_goes_on_with_what_was_chosen_at_its_first_start(model, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    first = pick(model, DESK)
    assert first.run.optim.name == "adamw_8bit"
    record(first, {}, folder)
    words = ["train", "--model", str(model), "--output_dir", str(folder)]
    # On other ranks, with another batch: what was chosen stays, what follows from it does not.
    more = [*words, "--per_device_train_batch_size", "2"]
    again = resolve(parse(more), {"WORLD_SIZE": "4"}, machine_of=machine_of(SERVER))
    assert again.config == first.config
    assert again.run.optim.name == "adamw_8bit"
    assert again.ds["train_batch_size"] == 8
    anew = resolve(parse([*words, "--resume", "never"]), {}, machine_of=machine_of(SERVER))
    assert "offload_optimizer" not in anew.ds["zero_optimization"]
    # A run that began with a JSON of its own keeps its optimizer.
    (folder / "resolved/chosen.json").unlink()
    own = resolve(parse(words), {}, machine_of=machine_of(DESK))
    assert own.run.optim.name == "adamw"


def test_several_tasks_are_planned_with_their_largest_head(tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "a", "label": "b"}')
    parts = [
        f"--task.parts.{name}.{key}={value}"
        for name, task in (("one", "classification"), ("two", "masked_lm"))
        for key, value in (("task", task), ("data", data))
    ]
    words = ["train", "--task", "multitask", *parts]
    chosen = resolve(parse(words), {}, machine_of=machine_of(DESK))
    job, _ = plan_run(chosen, {}, machine_of(DESK)(chosen))
    assert job.task == "masked_lm"


def test_an_average_and_a_copy_that_is_saved_take_host_memory(model):
    resolved = pick(model, SERVER)
    job, machine = plan_run(resolved, {}, machine_of(SERVER)(resolved))
    before = forecast(job, machine).host_bytes_per_host
    numel = job.architecture.parameters
    average = forecast(replace(job, ema=True), machine).host_bytes_per_host
    assert average - before == pytest.approx(4 * numel, rel=1e-3)
    copied = forecast(replace(job, saves_in_background=True), machine).host_bytes_per_host
    assert copied - before == pytest.approx(12 * numel, rel=1e-3)


def test_repairs_of_a_run_that_does_not_fit_would_fit(model):
    words = ["train", "--model", str(model), "--config", "ds_configs/zero3.json"]
    found = find_repairs(parse(words), {"WORLD_SIZE": "1"}, machine_of(DESK))
    assert found
    for line in found:
        flags = line.rpartition(": ")[0]
        words = ["train", "--model", str(model), *flags.split()]
        resolved = resolve(parse(words), {"WORLD_SIZE": "1"}, machine_of=machine_of(DESK))
        assert forecast(*plan_run(resolved, {}, machine_of(DESK)(resolved))).fits


def test_forecasts_grow_with_what_is_asked(model):
    resolved = pick(model, DESK)
    job, machine = plan_run(resolved, {}, machine_of(DESK)(resolved))
    before = forecast(job, machine)
    for change in ({"length": 4096}, {"micro_batch": 4}, {"checkpointing": "none"}):
        after = forecast(replace(job, **change), machine)
        assert after.device_bytes_per_rank > before.device_bytes_per_rank
        assert after.state_bytes == before.state_bytes
    more = forecast(replace(job, ranks=8, ranks_per_host=1), machine)
    assert more.host_bytes_per_host < before.host_bytes_per_host
    assert more.state_bytes == pytest.approx(before.state_bytes, rel=1e-3)


CLUSTER = Given(gpus="8x24GB", host_memory="512GB", hosts=4, network="25Gb")


def pick_on_hosts(model, given, line=""):
    words = ["train", "--model", str(model), "--config", "auto", *line.split()]
    machine = parse_machine(given, output_dir=Path("runs"))
    environ = {"WORLD_SIZE": str(machine.ranks), "LOCAL_SIZE": str(machine.ranks_per_host)}
    return resolve(parse(words), environ, machine_of=machine_of(given))


def test_a_slow_network_keeps_weights_inside_each_host(model):
    line = "--optim adamw --gradient_accumulation_steps 8 --per_device_train_batch_size 1"
    zero = pick_on_hosts(model, CLUSTER, line).ds["zero_optimization"]
    assert (zero["stage"], zero["zero_hpz_partition_size"]) == (3, 8)
    # Nobody is given fewer bits.
    assert not any("quantized" in key for key in zero)
    alone = pick_on_hosts(model, replace(CLUSTER, hosts=1), line).ds["zero_optimization"]
    assert "zero_hpz_partition_size" not in alone
