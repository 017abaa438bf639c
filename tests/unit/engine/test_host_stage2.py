"""DeepSpeed's stages 1 and 2, on which `HostZeroStage2` relies: what was read has not changed."""

import contextlib
import hashlib
import inspect

import deepspeed
import pytest
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

SUPPORTED = "0.19.8"
OVERRIDDEN = {
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
RELIED_ON = {
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


def digest(name: str) -> str:
    function = getattr(DeepSpeedZeroOptimizer, name)
    # DeepSpeed's `instrument_w_nvtx` hides what it wraps in a closure.
    inner = inspect.getclosurevars(function).nonlocals.get("func", function)
    return hashlib.sha256(inspect.getsource(inner).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("name", "expected"), [*OVERRIDDEN.items(), *RELIED_ON.items()])
def test_a_method_is_the_one_that_was_read(name, expected):
    assert digest(name) == expected, (
        f"{name} of DeepSpeed {deepspeed.__version__} is not that of {SUPPORTED}: read it again,"
        " and bigft/engine/host_stage2.py with it"
    )


def test_everything_that_is_overridden_is_in_the_list():
    from bigft.engine.host_stage2 import HostZeroStage2

    stock = set(dir(DeepSpeedZeroOptimizer))
    own = {name for name in vars(HostZeroStage2) if name in stock and not name.startswith("__")}
    assert own == set(OVERRIDDEN)


def test_deepspeeds_own_is_back_after_the_block():
    from deepspeed.runtime import engine

    from bigft.engine.host_stage2 import host_stage2

    with contextlib.suppress(KeyError), host_stage2():
        assert engine.DeepSpeedZeroOptimizer is not DeepSpeedZeroOptimizer
        raise KeyError
    assert engine.DeepSpeedZeroOptimizer is DeepSpeedZeroOptimizer
