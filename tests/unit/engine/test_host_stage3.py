"""DeepSpeed's stage 3, on which `HostZeroStage3` relies: what it overrides has not changed."""

import hashlib
import inspect

import deepspeed
import pytest
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

SUPPORTED = "0.19.8"
OVERRIDDEN = {
    "_configure_offloading": "8baac8d3087d",
    "_post_step": "d993f8fa66f0",
    "_create_fp32_partitions": "2d22754c23f5",
    "initialize_optimizer_states": "e7929e874835",
    "_setup_for_real_optimizer": "501df2275cc2",
    "_offload_grad_partition_at_boundary": "0a84c049d8c7",
    "unscale_and_clip_grads": "3f0d9e8e7861",
    "_optimizer_step": "35f8511bba5f",
    "_reassign_or_swap_out_partitioned_parameters": "af7b449bee87",
}
RELIED_ON = {
    "_create_param_groups_fp16_flat_cpu_memory": "fb59af0fe1f2",
    "_move_to_flat_buffer": "5404cb8c285d",
    "step": "c751b3209f83",
    "partition_grads": "93119b25314e",
    "_prepare_sub_group": "1427262f0819",
    "_release_sub_group": "8830be5fe992",
    "_get_norm_groups": "6a068faa3149",
    "complete_grad_norm_calculation_for_cpu_offload": "a89a9b0320ae",
    "_overflow_check_and_loss_scale_update": "3d4c5ccf6b98",
    "_constant_buffered_norm2": "b47fac9ed801",
    "_create_fp16_partitions_with_defragmentation": "db96601fe155",
    "_create_fp16_sub_groups": "f6d2d2f11751",
    "__init__": "2ebc271180aa",
}


def digest(name: str) -> str:
    function = getattr(DeepSpeedZeroOptimizer_Stage3, name)
    # DeepSpeed's `instrument_w_nvtx` hides what it wraps in a closure.
    inner = inspect.getclosurevars(function).nonlocals.get("func", function)
    source = inspect.getsource(inner)
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
