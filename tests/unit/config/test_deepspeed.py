"""Reading the DeepSpeed JSON strictly, editing it, and judging its keys."""

import pytest

from bigft.config import deepspeed_check
from bigft.config.deepspeed import find_value, leaves, parse_value, read_json, set_value
from bigft.config.deepspeed_check import REFUSED, WITHOUT_EFFECT, check_config
from bigft.config.deepspeed_keys import REMOVED
from bigft.errors import ConfigError


def check(tree):
    return check_config(tree, lambda path: "x.json")


def only_problem(tree):
    (problem,) = check(tree).problems
    return problem


def nested(path, value):
    tree = {}
    set_value(tree, path, value)
    return tree


def test_missing_file_names_neighbours(tmp_path):
    (tmp_path / "zero3.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*/zero3\.json\?"):
        read_json(str(tmp_path / "zero33.json"))
    with pytest.raises(ConfigError, match=r"zero: no such file\. In .*/ds_configs: zero1\.json, "):
        read_json(str(tmp_path / "zero"))


def test_syntax_error_shows_line_and_column(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{\n  "a": 1, // why\n  "b": 2\n}')
    with pytest.raises(ConfigError, match=r"line 2 column 11 \(JSON has no comments\)"):
        read_json(str(file))


def test_duplicate_keys_show_their_lines(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"x": {"enabled": "a: {"},\n "bf16": {"enabled": true,\n\n"enabled": false}}')
    with pytest.raises(ConfigError, match='"enabled" in lines 2 and 4'):
        read_json(str(file))


def test_the_same_key_in_two_sections_is_no_duplicate(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(
        '{"bf16": {"enabled": true}, "fp16": {"enabled": [{"enabled": 1}, {"enabled": 2}]}}'
    )
    assert read_json(str(file))["bf16"] == {"enabled": True}


@pytest.mark.parametrize("text", ["[1]", '{"a": NaN}', "\xff"])
def test_what_is_no_object_is_refused(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="--config"):
        read_json(str(file))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("True", True),
        ("8", 8),
        ("1e-5", 1e-5),
        ("nvme", "nvme"),
        ("null", None),
        ('{"a": 1}', {"a": 1}),
        ("/tmp/x", "/tmp/x"),
    ],
)
def test_values_of_edits_are_json_or_text(text, value):
    assert parse_value(text) == value


def test_edits_make_sections_and_refuse_to_cross_values():
    tree = {"a": 1}
    set_value(tree, "zero_optimization.offload_param.device", "nvme")
    assert list(leaves(tree)) == [("a", 1), ("zero_optimization.offload_param.device", "nvme")]
    with pytest.raises(ConfigError, match="a is 1 in the JSON, not a section"):
        set_value(tree, "a.b", 2)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("zero_optimisation", "zero_optimization"),
        ("zero_optimization.overlap_com", "zero_optimization.overlap_comm"),
        ("zero_optimization.offload_param.buffers_count", "buffer_count"),
        ("aio.queue_depht", "aio.queue_depth"),
        ("stage", "zero_optimization.stage"),
        ("bf16.enable", "bf16.enabled"),
    ],
)
def test_unknown_keys_are_errors_at_every_level(path, near):
    problem = only_problem(nested(path, 1))
    assert "x.json" in problem
    assert "did you mean" in problem
    assert near in problem


def test_unknown_argument_of_adam_is_an_error():
    tree = {"optimizer": {"type": "AdamW", "params": {"beta": [0.9, 0.99]}}}
    assert "did you mean optimizer.params.betas?" in only_problem(tree)


def test_arguments_of_other_optimizers_pass():
    assert not check({"optimizer": {"type": "Muon", "params": {"ns_method": "x"}}}).problems


def test_key_of_a_newer_deepspeed_passes_with_a_warning(monkeypatch):
    source = 'NEW = "new_feature"\nclass C(M):\n    brand_new: bool = False\n'
    monkeypatch.setattr(deepspeed_check, "_deepspeed_source", lambda: source)
    verdict = check({"new_feature": {"a": 1}, "bf16": {"brand_new": True}})
    assert not verdict.problems
    assert len(verdict.warnings) == 2


def test_numbers_written_as_text_become_numbers():
    tree = {"train_batch_size": "8", "zero_optimization": {"reduce_bucket_size": 5e8}}
    verdict = check(tree)
    assert tree["train_batch_size"] == 8
    assert isinstance(tree["zero_optimization"]["reduce_bucket_size"], int)
    assert "read as 8" in verdict.warnings[0]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("bf16.enabled", "yes", "true or false"),
        ("bf16.enabled", 1, "true or false"),
        ("train_batch_size", 1.5, "a whole number"),
        ("train_batch_size", True, "a whole number"),
        ("zero_optimization.offload_param.device", "disk", "none or cpu or nvme"),
        ("zero_optimization", True, "a section"),
        ("gradient_clipping", [1], "a number"),
        ("data_types.grad_accum_dtype", "float32", "bf16 or fp16 or fp32"),
    ],
)
def test_wrong_types_are_errors(path, value, expected):
    assert f"must be {expected}" in only_problem(nested(path, value))


@pytest.mark.parametrize("path", REMOVED)
def test_removed_keys_are_answered(path):
    tree = nested(path, {"x": 1})
    if path.startswith("optimizer"):
        tree["optimizer"]["type"] = "AdamW"
    assert REMOVED[path] in only_problem(tree)


REFUSED_VALUES = {
    "tensor_parallel": {"autotp_size": 2},
    "expert_parallel": {"enabled": True},
    "sequence_parallel_size": 2,
    "data_parallel_size": 2,
    "pipeline": {"stages": 2},
    "managed_gradient_accumulation": False,
    "prescale_gradients": True,
    "gradient_allreduce_op": "SUM",
    "gradient_predivide_factor": 2.0,
    "zero_optimization.zenflow": {"topk_ratio": 0.1},
    "zero_optimization.offload_optimizer.super_offload": True,
    "checkpoint.load_universal": True,
    "checkpoint.writer": {"type": "fast"},
    "datastates_ckpt": {"host_cache_size": 1},
    "data_efficiency": {"enabled": True},
    "autotuning": {"enabled": True},
    "hybrid_engine": {"enabled": True},
    "weight_quantization": {"enabled": True},
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_bigft_cannot_train_with_is_refused(path):
    assert REFUSED[path][1] in only_problem(nested(path, REFUSED_VALUES[path]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("managed_gradient_accumulation", True),
        ("prescale_gradients", False),
        ("gradient_allreduce_op", "mean"),
        ("gradient_predivide_factor", 1.0),
        ("sequence_parallel_size", 1),
        ("hybrid_engine.enabled", False),
        ("zero_optimization.offload_optimizer.super_offload", False),
    ],
)
def test_harmless_values_of_the_same_keys_pass(path, value):
    assert not check(nested(path, value)).problems


@pytest.mark.parametrize("section", WITHOUT_EFFECT)
def test_sections_without_effect_warn(section):
    key = "profile" if section == "activation_checkpointing" else "enabled"
    verdict = check({section: {key: True}})
    assert not verdict.problems
    assert WITHOUT_EFFECT[section] in verdict.warnings[0]


def test_second_names_become_first_names():
    tree = {"zero_optimization": {"prefetch_bucket_size": 5}}
    assert not check(tree).problems
    assert find_value(tree, "zero_optimization.stage3_prefetch_bucket_size") == 5
