"""DeepSpeed's stages, on which ours rely: what was read has not changed."""

import contextlib
import hashlib
import inspect

import deepspeed
import pytest
from deepspeed.runtime import engine
from deepspeed.runtime.zero import stage3
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from bigft.engine.host_stage2 import HostZeroStage2
from bigft.engine.host_stage3 import HostZeroStage3
from bigft.engine.host_zero import host_zero

SUPPORTED = "0.19.8"
OVERRIDDEN_2 = {
    "_configure_master_weights": "943f724e2d63",
    "initialize_optimizer_states": "9c439b900537",
    "_get_offload_gradient_dict": "5e0480c4ee74",
    "_build_compact_grad_partition_buffer": "54c896878ee9",
    "_add_to_grad_partition_buffer": "e52e5fd8099b",
    "copy_grads_in_partition": "110f723937b9",
    "unscale_and_clip_grads": "6bf2ce6f97ea",
    "_optimizer_step": "d7e21affbbf9",
    "_lazy_init_hp_params_optimizer_state": "45e666d78112",
    "reset_cpu_buffers": "b7809d4108be",
}
RELIED_ON_2 = {
    "__init__": "faa9fe03f220",
    "step": "9520884fd916",
    "update_lp_params": "3cdce069e3c6",
    "reduce_ipg_grads": "a41525b603f1",
    "average_tensor": "6fd000d730e5",
    "allreduce_and_copy_with_multiple_ranks": "e826693368e3",
    "allreduce_and_copy": "1db38d57186c",
    "gradient_reduction_w_predivide": "2946313f36ed",
    "_add_full_reduction_to_compact_grad_partition": "ce2bb0efd619",
    "_get_compact_grad_partition_buffer": "56079ca15278",
    "_get_compact_grad_partition_slice": "386a91e4390c",
    "_use_compact_grad_partition_buffer": "b4b53eb20083",
    "get_grad_position": "9d3ab4f548ab",
    "get_partition_info": "abb3ff65e1de",
    "initialize_gradient_partition": "c9639269026c",
    "get_data_parallel_partitions": "e19eb954f061",
    "_update_model_bit16_weights": "f6e3c0c53b4a",
    "process_gradients": "a05fe9cac73c",
    "reduce_independent_p_g_buckets_and_remove_grads": "500839d3f30c",
    "independent_gradient_partition_epilogue": "26ceef6d75b3",
    "setup_buckets": "82266aa4880f",
    "_link_all_hp_params": "e91c2f7e8f29",
    "scaled_global_norm": "63c6a6fe100c",
    "complete_grad_norm_calculation_for_cpu_offload": "7051c8064246",
    "has_overflow": "cadc27a13cb7",
    "_record_offload_copy": "8467947f2bba",
    "_wait_for_offload_copies": "e509dd0ad745",
    "_record_gradient_stream": "144bbb0f5375",
    "get_param_gradient_attribute": "5f21b6a644eb",
    "clear_grad_attribute": "c8b7ff5bf22f",
    "is_gradient_accumulation_boundary": "94f4796a33b6",
}
OVERRIDDEN_3 = {
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
RELIED_ON_3 = {
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
READ = [(DeepSpeedZeroOptimizer, *row) for row in (OVERRIDDEN_2 | RELIED_ON_2).items()]
READ += [(DeepSpeedZeroOptimizer_Stage3, *row) for row in (OVERRIDDEN_3 | RELIED_ON_3).items()]


def digest(stock: type, name: str) -> str:
    function = getattr(stock, name)
    # DeepSpeed's `instrument_w_nvtx` hides what it wraps in a closure.
    inner = inspect.getclosurevars(function).nonlocals.get("func", function)
    return hashlib.sha256(inspect.getsource(inner).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("stock", "name", "expected"), READ)
def test_a_method_is_the_one_that_was_read(stock, name, expected):
    assert digest(stock, name) == expected, (
        f"{name} of DeepSpeed {deepspeed.__version__} is not that of {SUPPORTED}: read it again,"
        " and bigft/engine/host_stage2.py or host_stage3.py with it"
    )


@pytest.mark.parametrize(
    ("own", "overridden"), [(HostZeroStage2, OVERRIDDEN_2), (HostZeroStage3, OVERRIDDEN_3)]
)
def test_everything_that_is_overridden_is_in_the_list(own, overridden):
    stock = set(dir(own.__base__))
    found = {name for name in vars(own) if name in stock and not name.startswith("__")}
    assert found == set(overridden)


def test_deepspeeds_own_are_back_after_the_block():
    with contextlib.suppress(KeyError), host_zero():
        assert engine.DeepSpeedZeroOptimizer is not DeepSpeedZeroOptimizer
        assert stage3.DeepSpeedZeroOptimizer_Stage3 is not DeepSpeedZeroOptimizer_Stage3
        raise KeyError
    assert engine.DeepSpeedZeroOptimizer is DeepSpeedZeroOptimizer
    assert stage3.DeepSpeedZeroOptimizer_Stage3 is DeepSpeedZeroOptimizer_Stage3
