"""Seconds, bytes and FLOPs."""

import subprocess
import sys
import time

import pytest
import torch
from making import llama_config

from bigft.monitor import meters
from bigft.monitor.meters import (
    PHASES,
    PhaseClock,
    count_flops_per_token,
    find_peak_flops,
    read_device_peak_bytes,
)

CPU = torch.device("cpu")


def test_phases_add_up_and_start_again_when_read():
    clock = PhaseClock(CPU)
    for _ in range(2):
        with clock.phase("forward"):
            time.sleep(0.02)
    with clock.phase("data"):
        time.sleep(0.01)
    seconds = clock.read()
    assert tuple(seconds) == PHASES
    assert 0.04 <= seconds["forward"] < 0.2
    assert 0.01 <= seconds["data"] < 0.1
    assert seconds["backward"] == seconds["optimizer"] == 0.0
    assert clock.read() == dict.fromkeys(PHASES, 0.0)


def test_resident_memory_grows_with_what_is_touched():
    # In a process of its own: what other tests leave behind may be freed in between.
    program = (
        "from bigft.monitor.meters import read_rss_bytes\n"
        "before = read_rss_bytes()\n"
        "block = b'x' * (64 << 20)\n"
        "print(read_rss_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert 0.9 * (64 << 20) < int(done.stdout) < 1.5 * (64 << 20)


def test_cpu_has_no_device_memory_and_no_known_peak():
    assert read_device_peak_bytes(CPU) == 0
    assert find_peak_flops(CPU) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_is_that_of_the_longest_matching_name(monkeypatch, name, peak):
    monkeypatch.setattr(meters.torch.cuda, "get_device_name", lambda _: name)
    assert find_peak_flops(torch.device("cuda")) == peak


def test_flops_equal_torchs_own_count():
    """Oracle: `FlopCounterMode` over forward and backward of a real model."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaForCausalLM

    config = llama_config(tie_word_embeddings=True, num_key_value_heads=4)
    config._attn_implementation = "eager"
    model, length = LlamaForCausalLM(config), 64
    ids = torch.randint(500, (1, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    planned = count_flops_per_token(matrices, 2, 48, length)
    attention = planned - 6 * matrices
    # Eager attention computes the upper triangle as well.
    wanted = planned + attention
    assert attention > 0.05 * planned
    assert counter.get_total_flops() / length == pytest.approx(wanted, rel=1e-6)
