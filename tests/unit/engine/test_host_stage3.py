"""DeepSpeed's stage 3, on which `HostZeroStage3` relies: what it overrides has not changed."""

import hashlib
import inspect

import deepspeed
import pytest
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

SUPPORTED = "0.19.8"
OVERRIDDEN = {
    "_create_fp32_partitions": "2d22754c23f5",
    "initialize_optimizer_states": "e7929e874835",
    "_setup_for_real_optimizer": "501df2275cc2",
    "_offload_grad_partition_at_boundary": "0a84c049d8c7",
    "unscale_and_clip_grads": "89aab0f80f1a",
    "_optimizer_step": "35f8511bba5f",
    "_reassign_or_swap_out_partitioned_parameters": "89aab0f80f1a",
}
RELIED_ON = {
    "step": "89aab0f80f1a",
    "partition_grads": "89aab0f80f1a",
    "_prepare_sub_group": "89aab0f80f1a",
    "_release_sub_group": "89aab0f80f1a",
    "_get_norm_groups": "89aab0f80f1a",
    "complete_grad_norm_calculation_for_cpu_offload": "a89a9b0320ae",
    "_overflow_check_and_loss_scale_update": "89aab0f80f1a",
    "_constant_buffered_norm2": "b47fac9ed801",
    "_create_fp16_partitions_with_defragmentation": "db96601fe155",
    "_create_fp16_sub_groups": "f6d2d2f11751",
    "__init__": "2ebc271180aa",
}


def digest(name: str) -> str:
    source = inspect.getsource(getattr(DeepSpeedZeroOptimizer_Stage3, name))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


@pytest.mark.parametrize(("name", "expected"), [*OVERRIDDEN.items(), *RELIED_ON.items()])
def test_a_method_is_the_one_that_was_read(name, expected):
    assert digest(name) == expected, (
        f"{name} of DeepSpeed {deepspeed.__version__} is not that of {SUPPORTED}: read it again,"
        " and bigft/engine/host_stage3.py with it"
    )


def test_everything_that_is_overridden_is_in_the_list():
    from bigft.engine.host_stage3 import HostZeroStage3

    stock = set(dir(DeepSpeedZeroOptimizer_Stage3))
    own = {name for name in vars(HostZeroStage3) if name in stock and not name.startswith("__")}
    assert own == set(OVERRIDDEN)
