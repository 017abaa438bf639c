"""Bytes of states, against the very objects that training lays out."""

from dataclasses import replace

import pytest
import torch

from bigft.optim.host import FlatState, Region
from bigft.planner.architecture.build import build_architecture
from bigft.planner.job import Job, Optimizer
from bigft.planner.states import (
    count_checkpoint_bytes,
    count_master_bytes,
    count_moment_bytes,
    count_state_bytes,
    list_pieces,
)
from bigft.planner.strategy import read_strategy

CONFIG = {
    "model_type": "llama",
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 333,
    "tie_word_embeddings": True,
}


def make_job(stage=3, *, ranks=1, bits=8, rest=16, precision="bf16", name="HostAdamW", **changes):
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    ds = {"zero_optimization": zero, **({precision: {"enabled": True}} if precision else {})}
    return Job(
        architecture=build_architecture(CONFIG),
        strategy=read_strategy(ds),
        optimizer=Optimizer(name, bits, rest),
        ranks=ranks,
        ranks_per_host=ranks,
        is_on_cpu=True,
        length=16,
        micro_batch=1,
        **changes,
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("precision", "rest"), [("bf16", 16), ("bf16", 8), ("", 16)])
def test_bytes_are_those_of_the_states_that_are_laid_out(stage, ranks, bits, precision, rest):
    job = make_job(stage, ranks=ranks, bits=bits, rest=rest, precision=precision)
    dtype = torch.bfloat16 if precision else torch.float32
    for rank in range(ranks):
        pieces = list_pieces(job, rank)
        regions, offset = [], 0
        for piece in pieces:
            coded = bits == 8 and len(piece.weight.shape) > 1
            regions.append(Region(piece.weight.name, piece.start, piece.numel, offset, coded))
            offset += piece.numel
        real = FlatState(dtype, regions, rest_bits=rest)
        assert count_moment_bytes(job, pieces) == real.moment_bytes
        assert count_master_bytes(job, pieces) == real.num_bytes - real.moment_bytes


def test_fp32_moments_are_eight_bytes_whoever_keeps_them():
    numel = make_job().architecture.parameters
    for name in ("HostAdamW", "AdamW", "DeepSpeedCPUAdam"):
        assert count_state_bytes(make_job(bits=32, name=name, ranks=2)) == 8 * numel


def test_a_checkpoint_has_four_bytes_of_every_weight_beside_its_moments():
    job = make_job(ranks=2)
    numel = job.architecture.parameters
    assert count_checkpoint_bytes(job) == 4 * numel + count_state_bytes(job)
    assert count_checkpoint_bytes(make_job(precision="", bits=32)) == 12 * numel
    assert count_checkpoint_bytes(make_job(bits=32, name="AdamW")) == 12 * numel
    assert count_checkpoint_bytes(make_job(rest=8)) == 3 * numel + count_state_bytes(make_job())
    assert count_checkpoint_bytes(replace(job, ema=True)) == count_checkpoint_bytes(job) + 4 * numel


def test_frozen_weights_have_no_states():
    table = "model.embed_tokens.weight"
    job = make_job(bits=32, frozen=frozenset({table}))
    numel = job.architecture.parameters - 333 * 36
    assert count_state_bytes(job) == 8 * numel
    assert count_checkpoint_bytes(job) == 12 * numel + 2 * 333 * 36


def test_many_ranks_are_counted_at_once():
    exact, many = (count_state_bytes(make_job(ranks=ranks, bits=32)) for ranks in (16, 17))
    assert many == pytest.approx(exact, rel=1e-2)
