"""Seconds of a step: the worked table of a desk and a data centre, and what must always hold."""

from dataclasses import replace

import pytest

from bigft.planner.machine import Rate, SliceMeasurement
from bigft.planner.time import time_step
from bigft.planner.work import Layout, Update, build_work
from tests.support.plan_models import make_llama, make_machine, make_matrices

STOCK = Update("adamw", "DeepSpeedCPUAdam", 8.0)
OURS = Update("adamw_8bit", "HostAdamW", 2.03, 3.0, 3.03)
DESK = {"matrix": 150e12, "pcie": 25e9, "host_memory": 65e9}
SERVER = {"matrix": 600e12, "pcie": 55e9, "host_memory": 200e9}

# Rates, parameters, hidden, layers, tokens, micro-batch; then seconds: compute, weights in,
# gradients out per micro-batch, activations each way, NVMe states of 12 and of 3 bytes; tokens/s.
WORKED = [
    (DESK, 7.6e9, 3584, 28, 65536, 8192, 26.6, 9.7, 4.9, 0.5, 28, 7, 2470),
    (DESK, 7.6e9, 3584, 28, 524288, 16384, 213, 39, 19, 4.2, 28, 7, 2470),
    (DESK, 13e9, 5120, 40, 65536, 8192, 45.4, 16.6, 8.3, 1.1, 48, 12, 1440),
    (DESK, 70e9, 8192, 80, 65536, 8192, 245, 90, 45, 3.4, 260, 65, 268),
    (SERVER, 7.6e9, 3584, 28, 65536, 16384, 6.6, 2.2, 1.1, 0.2, 28, 7, 9870),
    (SERVER, 13e9, 5120, 40, 65536, 16384, 11.4, 3.8, 1.9, 0.5, 48, 12, 5770),
    (SERVER, 70e9, 8192, 80, 65536, 16384, 61, 20, 10, 1.6, 260, 65, 1070),
]


def _round_as(expected: float) -> float:
    """How far a number of that many digits may be off."""
    digits = len(str(expected).partition(".")[2]) if expected < 10 or expected % 1 else 0
    return max(0.51 * 10**-digits, 0.012 * expected)


@pytest.mark.parametrize("row", WORKED, ids=lambda row: f"{row[1]:.2g} {row[4]}")
def test_worked_steps(row):
    speeds, parameters, hidden, layers, tokens, micro, *seconds, rate = row
    model, machine = make_matrices(parameters, hidden, layers), make_machine(**speeds)
    length = 1024
    layout = Layout(
        stage=3,
        ranks=1,
        rows=micro // length,
        length=length,
        micro_batches=tokens // micro,
        checkpointing="full",
    )

    def find(update=STOCK, **changes):
        work = build_work(model, replace(layout, **changes), update, machine)
        return work, time_step(work, machine)

    work, alone = find()
    assert work.flops_per_token == pytest.approx(8 * parameters, rel=1e-3)
    offloaded, _ = find(offload_param="cpu")
    grads, _ = find(offload_optimizer="cpu")
    kept, _ = find(checkpointing="full_cpu_offload")
    states = []
    for swap in (12.0, 3.0):
        _, swapped = find(replace(STOCK, swap_bytes=swap), offload_optimizer="nvme")
        states.append(swapped.nvme)
    pcie = speeds["pcie"]
    found = [alone.compute, offloaded.pcie_in / pcie, grads.pcie_out / pcie]
    found += [kept.pcie_out / pcie, *states]
    assert kept.pcie_in == kept.pcie_out
    for name, got, wanted in zip(
        ("compute", "in", "out", "activations", "nvme 12", "nvme 3"), found, seconds, strict=True
    ):
        assert got == pytest.approx(wanted, abs=_round_as(wanted)), name
    assert tokens / alone.compute == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "seconds"), [(8, 8.97), (16, 11.93), (32, 18.30)], ids=["8", "16", "32"]
)
def test_a_published_run_of_deepspeed(rows, seconds):
    """Llama-3.1-8B, ZeRO-3 with both offloads on a card of 24 GB, as SlideFormer's authors logged
    it: 8.97, 11.93 and 18.30 s for 8, 16 and 32 rows of 1,024 tokens."""
    model = make_llama(4096, 14336, 32, 32, 128256, groups=4)
    assert model.parameters == 8_030_261_248
    machine = make_machine(**DESK)
    layout = Layout(
        stage=3,
        ranks=1,
        rows=rows,
        length=1024,
        offload_param="cpu",
        offload_optimizer="cpu",
        checkpointing="full",
    )
    time = time_step(build_work(model, layout, STOCK, machine), machine)
    assert time.total == pytest.approx(seconds, rel=0.1)


def test_disk_wear_of_a_measured_run():
    """7.01 billion parameters, 24 bits of master: 35.3 GB each way and step (docs/log.md)."""
    model, machine = make_matrices(7.01e9, 4096, 34), make_machine(device="cpu")
    layout = Layout(3, 1, 1, 64, offload_param="nvme", offload_optimizer="nvme")
    work = build_work(model, layout, OURS, machine)
    assert work.disk_wear == pytest.approx(35.3e9, rel=0.01)
    assert work.nvme_read == pytest.approx(35.3e9, rel=0.01)
    assert work.weights_read == pytest.approx(2 * 14.02e9, rel=0.01)
    assert time_step(work, machine).disk_bytes == work.disk_wear


def test_matrix_flops_are_those_of_torch():
    """Oracle: `FlopCounterMode` over forward and backward of a real model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256}
    module = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager"))
    model, machine = make_llama(), make_machine()
    # The last product of a layer is not computed again: no gradient needs its result.
    for keeps, skipped in (("none", 0), ("full", 2 * 192 * 2 * 64 * 128)):
        if keeps == "full":
            module.train()
            module.activation_checkpointing_enable({"use_reentrant": False})
        with FlopCounterMode(display=False) as counter:
            ids = torch.zeros((2, 96), dtype=torch.long)
            module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        layout = Layout(0, 1, 2, 96, checkpointing=keeps, attention="eager")
        counted = build_work(model, layout, STOCK, machine).flops
        # The rotary angles are products too.
        assert counter.get_total_flops() == pytest.approx(counted - skipped, rel=0.002)


def test_experts_that_a_token_does_not_see_cost_nothing():
    from bigft.planner.architecture.weights import Weight

    dense = make_llama()
    block = next(dense.blocks)
    attention = tuple(weight for weight in block.weights if weight.name in "qkvo")
    experts = tuple(
        Weight(f"{name}", (8, *shape))
        for name, shape in (("gate", (128, 64)), ("up", (128, 64)), ("down", (64, 128)))
    )
    sparse = make_llama(weights=(*attention, *experts), experts=8, experts_per_token=2)
    layout, machine = Layout(3, 1, 1, 128), make_machine()
    extra = (
        build_work(sparse, layout, STOCK, machine).flops
        - build_work(dense, layout, STOCK, machine).flops
    )
    # One MLP more per layer and token.
    assert extra == 6 * 2 * (3 * 64 * 128) * 128


@pytest.mark.parametrize(
    ("changes", "block", "seen"),
    [
        ({}, {}, 500),
        ({"attention": "eager"}, {}, 1000),
        ({"is_packed": True}, {}, 1000),
        ({"is_packed": True, "attention": "flash_attention_2"}, {}, 500),
        ({"attention": "flash_attention_2"}, {"window": 100}, 95),
        ({}, {"window": 100}, 1000),
    ],
)
def test_attention_sees_what_its_implementation_computes(changes, block, seen):
    machine = make_machine()
    layout = Layout(3, 1, 1, 1000, **changes)
    with_scores = build_work(make_llama(**block), layout, STOCK, machine).flops
    without = build_work(make_llama(**block, head_dim=0), layout, STOCK, machine).flops
    assert with_scores - without == pytest.approx(2 * 12 * 64 * seen * 1000)


def test_attention_of_an_encoder_looks_both_ways():
    from bigft.planner.architecture.weights import Stack

    decoder = make_llama()
    encoder = replace(decoder, stacks=(Stack("encoder", decoder.stacks[0].blocks),))
    layout, machine = Layout(3, 1, 1, 1000), make_machine()
    more = (
        build_work(encoder, layout, STOCK, machine).flops
        - build_work(decoder, layout, STOCK, machine).flops
    )
    assert more == pytest.approx(2 * 12 * 64 * 500 * 1000)


@pytest.mark.parametrize(
    ("stage", "volume"), [(0, 4), (1, 4), (2, 3 * 2 + 2), (3, 3 * (2 + 2 * 2))]
)
def test_collectives_move_what_the_stage_says(stage, volume):
    model, machine = make_llama(), make_machine(4, 2)
    work = build_work(model, Layout(stage, 8, 1, 64, micro_batches=3), STOCK, machine)
    assert work.sent == pytest.approx(volume * model.parameters * 7 / 8)
    assert work.sent_between_hosts == pytest.approx(volume * model.parameters / 2)
    alone = build_work(model, Layout(stage, 1, 1, 64, micro_batches=3), STOCK, make_machine())
    assert alone.sent == alone.sent_between_hosts == 0


OFFLOADS = [("none", "none"), ("cpu", "none"), ("cpu", "cpu"), ("nvme", "nvme")]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("update", [STOCK, OURS], ids=["stock", "ours"])
def test_what_must_always_hold(device, offload, update):
    model = make_llama(512, 1024, 6, 8, 4096)
    machine = make_machine(4, 2, device)
    layout = Layout(3, 8, 2, 512, 2, offload_optimizer=offload[0], offload_param=offload[1])

    def find(machine=machine, model=model, **changes):
        return time_step(build_work(model, replace(layout, **changes), update, machine), machine)

    base = find()
    parts = [base.compute, base.pcie, base.host_optimizer, base.nvme, base.network, base.overhead]
    assert max(parts) <= base.total <= sum(parts) * (1 + 1e-9)
    assert getattr(base, base.bottleneck) == max(parts)
    # More work is never faster.
    for more in ({"length": 1024}, {"rows": 4}, {"micro_batches": 4}, {"checkpointing": "full"}):
        assert find(**more).total >= base.total
        assert find(**more).compute > base.compute
    deeper = find(model=make_llama(512, 1024, 12, 8, 4096))
    assert deeper.total > base.total
    # Slower links and units are never faster.
    for name in ("matrix", "host_memory", "pcie", "disk_read", "disk_write", "network", "peer"):
        rates = machine.rates
        slower = Rate(getattr(rates, name).per_second / 3, "given")
        assert find(replace(machine, rates=replace(rates, **{name: slower}))).total >= base.total
    # More accumulation in the same memory: fewer bytes of disk per token.
    assert find(micro_batches=4).disk_bytes == base.disk_bytes
    # More hosts: each updates and swaps less.
    wider = find(make_machine(4, 4, device), ranks=16)
    assert wider.host_optimizer < base.host_optimizer
    assert wider.disk_bytes <= base.disk_bytes
    assert wider.tokens_per_second > 0
    assert (base.disk_bytes > 0) == (offload[0] == "nvme")


def test_measured_layers_take_the_place_of_counted_ones():
    model, machine = make_llama(), make_machine()
    work = build_work(model, Layout(3, 1, 1, 64, 5), STOCK, machine)
    found = time_step(work, machine, SliceMeasurement(0.25, 0.5, 0, 0))
    assert found.compute == 5 * (2 * 0.25 + 0.5)
    assert found.is_calibrated
    assert not time_step(work, machine).is_calibrated


def test_a_measured_optimizer_is_believed():
    model = make_llama()
    machine = make_machine(device="cpu")
    steps = {"adamw_8bit": Rate(1e6, "measured")}
    machine = replace(machine, rates=replace(machine.rates, host_steps=steps))
    work = build_work(model, Layout(3, 1, 1, 64, offload_optimizer="cpu"), OURS, machine)
    assert time_step(work, machine).host_optimizer == pytest.approx(model.parameters / 1e6)
