"""What is sent in a step, and how long it takes: by hand, and what must always hold."""

from dataclasses import replace

import pytest

from bigft.planner.links import GLOO, NCCL, time_flow
from bigft.planner.machine import Hop, Rate
from bigft.planner.sharing import count_buckets, count_gathers
from bigft.planner.traffic import Flow, Sharing, list_flows
from tests.support.plan_models import make_machine

N = 1_000_000
THREE = Sharing(3, N, N, 2, 2)


def _sum(flows, name="sent"):
    return sum(getattr(flow, name) for flow in flows)


def test_one_rank_sends_nothing():
    assert list_flows(THREE, 4, 1, 1) == ()


@pytest.mark.parametrize(
    ("sharing", "bytes_per_weight"),
    [
        (Sharing(0, N, N, 2, 2), 4),
        (Sharing(1, N, N, 2, 2, reduction="all"), 4 + 2),
        (Sharing(1, N, N, 2, 2, reduction="owner"), 2 + 2),
        (Sharing(2, N, N, 2, 2, reduction="all"), 3 * 4 + 2),
        (Sharing(2, N, N, 2, 2, reduction="owner"), 3 * 2 + 2),
        (THREE, 3 * 6),
        (replace(THREE, kept=N), 3 * 4),
        (replace(THREE, kept=N // 2), 3 * 5),
        (replace(THREE, trained=0), 3 * 4),
        (replace(THREE, quantizes_weights=True), 3 * (2 + 2)),
    ],
)
def test_three_micro_batches_on_eight_ranks(sharing, bytes_per_weight):
    flows = list_flows(sharing, 3, 8, 8)
    assert _sum(flows) == pytest.approx(bytes_per_weight * N * 7 / 8)
    assert _sum(flows, "sent_between") == 0


def test_persistent_weights_are_gathered_once():
    flows = list_flows(replace(THREE, persistent=1000, small_gathers=10), 3, 8, 8)
    weights = [flow for flow in flows if flow.kind == "all_gather"]
    assert _sum(weights, "num_bytes") == 2 * (6 * (N - 1000) + 1000)


def test_second_shards_leave_one_pass_and_the_gradients_to_the_network():
    plain = list_flows(THREE, 3, 16, 8)
    grouped = list_flows(replace(THREE, group=8), 3, 16, 8)
    # As much is gathered in all.
    assert _sum(grouped, "num_bytes") == _sum(plain, "num_bytes")
    assert _sum(plain, "sent_between") == pytest.approx(3 * 6 * N * 15 / 16)
    assert _sum(grouped, "sent_between") == pytest.approx((2 + 3 * 2) * N * 15 / 16)
    inside = [flow for flow in grouped if flow.hosts == 1]
    assert _sum(inside) == pytest.approx(5 * 2 * N * 7 / 8)
    # A group of all ranks is none.
    assert list_flows(replace(THREE, group=16), 3, 16, 8) == plain


def test_gradients_of_four_bits_are_added_up_inside_hosts_first():
    flows = list_flows(replace(THREE, quantizes_gradients=True), 1, 16, 8)
    inside, between = (flow for flow in flows if flow.kind == "all_to_all")
    assert inside.sent == pytest.approx(N / 2 * 7 / 8)
    assert between.sent == pytest.approx(N / 2 / 8 / 2)
    assert between.sent_between == pytest.approx(N / 2 / 2)
    # On one host DeepSpeed does not.
    assert all(
        flow.kind != "all_to_all"
        for flow in list_flows(replace(THREE, quantizes_gradients=True), 1, 8, 8)
    )


def test_a_ring_that_is_long_enough_takes_its_hops():
    machine = make_machine(8, 128, network=50e9, peer=300e9)
    flow = Flow("x", "all_gather", 1, 1024, 1024, 128)
    quickest = min(
        way.start + 896 * way.inside + 127 * way.between for way in NCCL if not way.is_tree
    )
    assert time_flow(flow, machine) == pytest.approx(quickest, rel=0.01)
    # A sum of little goes by a tree, which is a few hops deep.
    assert time_flow(replace(flow, kind="all_reduce"), machine) < quickest / 5


def test_a_large_message_takes_its_bytes():
    machine = make_machine(8, 2, network=50e9, peer=300e9)
    flow = Flow("x", "all_gather", 1, 100e9, 16, 2)
    assert time_flow(flow, machine) == pytest.approx(100e9 * 15 / 16 / 50e9, rel=0.01)
    inside = Flow("x", "all_gather", 1, 100e9, 8, 1)
    assert time_flow(inside, machine) == pytest.approx(100e9 * 7 / 8 / 300e9, rel=0.01)


def test_a_measured_hop_is_believed():
    machine = make_machine(1, 4, "cpu")
    flow = Flow("x", "all_reduce", 10, 40, 4, 4)
    (way,) = GLOO
    assert time_flow(flow, machine) == pytest.approx(10 * (way.start + 6 * way.between), rel=0.01)
    slow = replace(machine, rates=replace(machine.rates, hop=Hop(0.01)))
    assert time_flow(flow, slow) == pytest.approx(10 * (way.start + 6 * 0.01), rel=0.01)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter", "all_reduce", "reduce"])
def test_more_ranks_bytes_calls_or_slower_links_are_never_faster(device, kind):
    machine = make_machine(4, 8, device)
    flow = Flow("x", kind, 5, 1e8, 32, 8)
    seconds = time_flow(flow, machine)
    for more in ({"calls": 50}, {"num_bytes": 2e8}, {"ranks": 64, "hosts": 16}):
        assert time_flow(replace(flow, **more), machine) > seconds
    for name in ("network", "peer"):
        slower = Rate(getattr(machine.rates, name).per_second / 9, "given")
        rates = replace(machine.rates, **{name: slower})
        assert time_flow(flow, replace(machine, rates=rates)) >= seconds


def test_calls_are_counted_as_deepspeed_fills_its_buckets():
    assert count_gathers([], 10) == count_buckets([], 10) == 0
    assert count_gathers([4, 4, 4, 30, 1], 10) == 3
    assert count_buckets([4, 4, 4, 30, 1], 10) == 4
    assert count_gathers([5] * 7, 0) == count_buckets([5] * 7, 1) == 7
