"""Weights kept once more inside each host, and communication in fewer bits: what goes together."""

import pytest

from bigft.cli import parse
from bigft.errors import ConfigError
from bigft.run.resolve import resolve

ZERO = "--ds.zero_optimization"
GROUP = f"{ZERO}.zero_hpz_partition_size"


def resolved(line, world=8, local=4, config="zero3"):
    words = ["train", "--config", f"ds_configs/{config}.json", *line.split()]
    return resolve(parse(words), {"WORLD_SIZE": str(world), "LOCAL_SIZE": str(local)})


@pytest.mark.parametrize(("group", "world", "local"), [(4, 8, 4), (2, 8, 4), (8, 64, 8), (1, 6, 4)])
def test_groups_that_fit_hosts_pass(group, world, local):
    found = resolved(f"{GROUP}={group}", world, local)
    assert found.ds["zero_optimization"]["zero_hpz_partition_size"] == group
    assert not [line for line in found.warnings if "hpz" in line]


@pytest.mark.parametrize(
    ("group", "world", "local"), [(8, 16, 4), (3, 8, 4), (3, 12, 4), (4, 12, 6), (16, 8, 4)]
)
def test_groups_across_hosts_are_refused_with_what_would_do(group, world, local):
    with pytest.raises(ConfigError) as caught:
        resolved(f"{GROUP}={group}", world, local)
    text = str(caught.value)
    assert f"zero_hpz_partition_size = {group} (--ds.zero_optimization." in text
    assert f"{world} ranks, {local} of them on this host" in text
    assert f"Write {local}" in text


def test_one_host_has_no_use_for_groups():
    assert any("saves little" in line for line in resolved(f"{GROUP}=2", 4, 4).warnings)
    with pytest.raises(ConfigError, match="saves little"):
        resolved(f"{GROUP}=3", 4, 4)


def test_below_stage_three_they_are_without_effect():
    found = resolved(f"{GROUP}=4", config="zero2")
    assert any("without effect below stage 3" in line for line in found.warnings)


@pytest.mark.parametrize(("world", "local", "group"), [(8, 4, 4), (8, 8, 1), (3, 1, 1), (5, 4, 1)])
def test_auto_is_the_ranks_of_a_host(world, local, group):
    found = resolved(f"{GROUP}=auto", world, local)
    assert found.ds["zero_optimization"]["zero_hpz_partition_size"] == group
    assert "derived" in found.origin["ds.zero_optimization.zero_hpz_partition_size"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (f"{ZERO}.zero_quantized_weights=true --ds.torch_autocast.enabled=true", "Drop one"),
        (f"{ZERO}.zero_quantized_gradients=true {ZERO}.reduce_scatter=false", "needs zero_opt"),
    ],
)
def test_fewer_bits_that_deepspeed_cannot_send_are_refused(line, text):
    with pytest.raises(ConfigError, match=text):
        resolved(line)


@pytest.mark.parametrize("name", ["weights", "gradients"])
def test_fewer_bits_are_never_silent(name):
    line = f"{ZERO}.zero_quantized_{name}=true"
    assert any("numbers of the run are others" in text for text in resolved(line).warnings)
    early = resolved(line, config="zero2").warnings
    assert any("without effect below stage 3" in text for text in early)


def test_fewer_bits_need_a_gpu():
    from bigft.engine.build import check_precision

    with pytest.raises(ConfigError, match="kernels for NVIDIA GPUs alone"):
        check_precision({"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}})
    check_precision({"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}})
