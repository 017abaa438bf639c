"""The key table equals what the installed DeepSpeed reads."""

import inspect
import sys
from pathlib import Path

import pytest

from bigft.config.deepspeed_keys import ADAM_PARAMS, KEYS, REMOVED, WARMUP_PARAMS, ZERO_SYNONYMS

# Beside this file; pytest's importlib mode does not look there by itself.
sys.path.insert(0, str(Path(__file__).parent))
import deepspeed_introspection as introspection

# Asked for outside of `DeepSpeedConfig._initialize_params`.
ELSEWHERE = {"vocabulary_size", "sequence_parallel_size", "data_parallel_size"}
# Sections that a plain function reads, so that their keys can be recorded.
READ_BY_FUNCTIONS = {
    "aio": {"block_size": 1},
    "checkpoint": {"tag_validation": "Warn"},
    "activation_checkpointing": {"profile": False},
    "flops_profiler": {"enabled": False},
    "data_types": {"grad_accum_dtype": None},
    "optimizer": {"type": "adam"},
    "scheduler": {"type": "WarmupLR"},
    "torch_autocast": {"dtype": "bf16"},
}


@pytest.mark.parametrize("name", introspection.pydantic_sections())
def test_section_equals_deepspeeds_own_model(name):
    assert KEYS[name] == introspection.pydantic_sections()[name]


def test_top_level_equals_what_deepspeed_asks_for():
    asked = introspection.keys_asked_by_deepspeed(READ_BY_FUNCTIONS)[""]
    removed = {key for key in REMOVED if "." not in key}
    assert asked - removed == set(KEYS) - ELSEWHERE


@pytest.mark.parametrize("name", READ_BY_FUNCTIONS)
def test_section_equals_what_deepspeed_asks_for(name):
    assert introspection.keys_asked_by_deepspeed(READ_BY_FUNCTIONS)[name] == set(KEYS[name])


def test_removed_keys_are_those_that_deepspeed_rejects():
    from deepspeed.runtime import config

    top = set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    inside = {f"zero_optimization.{key}" for key in config._REMOVED_ZERO_CONFIG_KEYS}
    assert top | inside <= set(REMOVED)


def test_deprecated_zero_keys_are_answered():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    deprecated = introspection.deprecated_keys(DeepSpeedZeroConfig)
    assert {f"zero_optimization.{key}" for key in deprecated} <= set(REMOVED)


def test_second_names_equal_deepspeeds_aliases():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    assert {name: f.alias for name, f in fields.items() if f.alias} == ZERO_SYNONYMS


def test_adam_parameters_are_those_of_deepspeeds_adams():
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    taken = set()
    for optimizer in (DeepSpeedCPUAdam, FusedAdam):
        taken |= set(inspect.signature(optimizer.__init__).parameters)
    # The engine itself takes these out before it calls the optimizer.
    by_engine = {"torch_adam", "foreach"}
    positional = {"self", "params", "model_params", "adamw_mode"}
    assert taken - positional | by_engine == set(ADAM_PARAMS)


@pytest.mark.parametrize("name", WARMUP_PARAMS)
def test_warm_up_parameters_are_those_of_deepspeeds_schedules(name):
    from deepspeed.runtime import lr_schedules

    taken = set(inspect.signature(getattr(lr_schedules, name).__init__).parameters)
    assert taken - {"self", "optimizer", "last_batch_iteration"} == set(WARMUP_PARAMS[name])
