"""Which optimizer is built for which place of its states."""

from typing import Any

import pytest
import torch

from bigft.errors import ConfigError
from bigft.optim.build import plan_optimizer
from bigft.optim.section import OptimSection


def _ds(device: str | None = None, **changes: Any) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": 3}
    if device is not None:
        zero["offload_optimizer"] = {"device": device.removeprefix("fp16, ")}
        if device.startswith("fp16"):
            changes["fp16"] = {"enabled": True}
    return {"zero_optimization": zero, **changes}


@pytest.mark.parametrize(
    ("name", "device", "class_name", "state_bytes"),
    [
        ("adamw", None, "AdamW", 8.0),
        ("adamw", "none", "AdamW", 8.0),
        ("adamw", "fp16, cpu", "DeepSpeedCPUAdam", 8.0),
        ("adamw_8bit", None, "HostAdamW8bit", 2.03),
        ("adamw_8bit", "fp16, cpu", "HostAdamW8bit", 2.03),
    ],
)
def test_the_planned_class_is_the_built_one(name, device, class_name, state_bytes):
    section = OptimSection(
        name=name, learning_rate=0.25, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-4
    )
    plan = plan_optimizer(section, _ds(device))
    assert (plan.class_name, plan.state_bytes_per_parameter) == (class_name, state_bytes)
    weight = torch.nn.Parameter(torch.ones(512, 16))
    optimizer = plan.build([{"params": [weight], "weight_decay": 0.5}])
    assert type(optimizer).__name__ == class_name
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["eps"]) == (0.25, (0.8, 0.95), 1e-4)
    assert group["weight_decay"] == 0.5
    weight.grad = torch.full_like(weight, 0.1)
    optimizer.step()
    # Decoupled decay by lr * weight_decay, then one Adam step of lr.
    wanted = torch.full_like(weight, 0.875 - 0.25)
    torch.testing.assert_close(weight.data, wanted, rtol=0, atol=2e-3)
    state = optimizer.state[weight]
    kept = sum(
        v.numel() * v.element_size()
        for k, v in state.items()
        if torch.is_tensor(v) and v.numel() > 1 and not k.startswith("qmap")
    )
    assert kept / weight.numel() == pytest.approx(state_bytes, rel=0.01)


def test_8bit_states_that_deepspeed_would_swap_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="diverges"):
        plan_optimizer(OptimSection(name="adamw_8bit"), _ds("nvme", fp16={"enabled": True}))


@pytest.mark.parametrize(
    ("name", "bits", "expected"),
    [("adamw_8bit", 32, 4.03), ("adamw_8bit", 24, 3.03), ("adamw", 32, 10.0)],
)
def test_what_lies_on_nvme_is_counted(name, bits, expected):
    section = OptimSection(name=name, master_bits=bits)
    plan = plan_optimizer(section, _ds("nvme", bf16={"enabled": True}))
    assert plan.class_name == "HostAdamW"
    assert plan.swap_bytes_per_parameter == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "class_name"),
    [
        ({}, "HostAdamW"),
        ({"bf16": {"enabled": True}}, "HostAdamW"),
        ({"fp16": {"enabled": True}}, "HostAdamW8bit"),
        ({"offload_param": {"device": "cpu"}}, "HostAdamW"),
        ({"offload_param": {"device": "nvme"}}, "HostAdamW8bit"),
        ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, "HostAdamW8bit"),
        ({"stage": 2}, "HostAdamW"),
        ({"stage": 1, "bf16": {"enabled": True}}, "HostAdamW"),
        ({"stage": 2, "fp16": {"enabled": True}}, "HostAdamW8bit"),
    ],
)
def test_what_is_stepped_in_host_memory_has_a_step_of_its_own(changes, class_name):
    ds = _ds("cpu")
    for key, value in changes.items():
        place = ds if key in ("bf16", "fp16") else ds["zero_optimization"]
        place[key] = value
    plan = plan_optimizer(OptimSection(name="adamw_8bit"), ds)
    assert plan.class_name == class_name
    of_fp32 = plan_optimizer(OptimSection(), ds).class_name
    assert (of_fp32 == "HostAdamW") == (class_name == "HostAdamW")
    assert ("slower" in plan.note) == (class_name == "HostAdamW8bit")
    assert plan_optimizer(OptimSection(name="adamw_8bit"), _ds()).note == ""


@pytest.mark.parametrize(("name", "bits"), [("adamw", 32), ("adamw_8bit", 8)])
def test_the_choices_of_the_step_in_host_memory_reach_it(name, bits):
    section = OptimSection(name=name, learning_rate=0.25, master_bits=24)
    optimizer: Any = plan_optimizer(section, _ds("cpu")).build([{"params": [torch.ones(1)]}])
    assert (optimizer.param_groups[0]["moment_bits"], optimizer.rest_bits) == (bits, 8)


@pytest.mark.parametrize(
    ("kind", "device", "class_name"),
    [("AdamW", None, "FusedAdam"), ("Adam", "cpu", "DeepSpeedCPUAdam"), ("Lion", None, "Lion")],
)
def test_an_optimizer_block_in_the_json_is_deepspeeds_to_build(kind, device, class_name):
    plan = plan_optimizer(OptimSection(), _ds(device, optimizer={"type": kind, "params": {}}))
    assert plan.build is None
    assert plan.class_name == class_name
