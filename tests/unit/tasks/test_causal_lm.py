"""The loss of next-token prediction, on real tiny models."""

from typing import Any

import numpy as np
import pytest
import torch
from making import VOCAB, llama_config
from torch.nn import functional

from bigft.data.loading.collate import collate_packed, collate_padded
from bigft.data.order.pack import pack_best_fit
from bigft.data.tokens.tokenize import Row
from bigft.tasks.causal_lm import CausalLM


def _rows(seed: int = 0, lengths: tuple[int, ...] = (9, 14, 5, 11)) -> list[Row]:
    chooser = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        supervised = np.zeros(length, dtype=bool)
        supervised[length // 2 :] = True
        rows.append(Row(chooser.integers(1, VOCAB, length, dtype=np.int32), supervised))
    return rows


def _model(attention: str = "eager", **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = llama_config(**changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


class FullLogits(torch.nn.Module):
    """A model of an author who knows nothing of `logits_to_keep`."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        assert use_cache is False
        return self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        )


def _padded(rows: list[Row]) -> Any:
    return collate_padded([[row] for row in rows], pad_id=0, max_length=64)


def _packed(rows: list[Row]) -> Any:
    return collate_packed([rows], pad_id=0, max_length=64)


def _gradients(model: Any, batch: Any) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = CausalLM().loss(model, batch)
    loss.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return loss.total.detach(), loss.tokens, gradients


def _assert_equal(one: Any, other: Any, prefix: str = "") -> None:
    assert one[1] == other[1]
    torch.testing.assert_close(one[0], other[0], rtol=2e-6, atol=0)
    assert float(sum(gradient.abs().sum() for gradient in one[2].values())) > 1
    for name, gradient in one[2].items():
        torch.testing.assert_close(other[2][prefix + name], gradient, rtol=2e-5, atol=2e-6)


def test_loss_is_the_sum_over_supervised_next_tokens():
    rows = _rows()
    model = _model()
    loss = CausalLM().loss(model, _padded(rows))
    wanted, tokens = torch.zeros(()), 0
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        for position in range(1, len(ids)):
            if row.supervised[position]:
                wanted = wanted + functional.cross_entropy(logits[position - 1], ids[position])
                tokens += 1
    assert loss.tokens == tokens
    torch.testing.assert_close(loss.total, wanted, rtol=2e-6, atol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_leaving_out_unneeded_logits_changes_nothing(attention):
    model = _model(attention)
    whole = FullLogits(model)
    for batch in (_padded(_rows()), _packed(_rows())):
        kept = _gradients(model, batch)
        full = _gradients(whole, batch)
        _assert_equal(kept, full, "inner.")


def test_only_the_supervised_positions_reach_the_head():
    model, seen = _model(), []
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    row = _rows(lengths=(20,))[0]
    CausalLM().loss(model, _padded([row]))
    assert seen == [10]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_padded(attention):
    """Examples in one sequence do not see each other, in the loss and in every gradient."""
    model = _model(attention)
    rows = _rows()
    assert _packed(rows).attention_mask is None
    _assert_equal(_gradients(model, _padded(rows)), _gradients(model, _packed(rows)))


def _packed_as_loaded(rows: list[Row], max_length: int) -> Any:
    """Pack as the loader does: several sequences, unequally full, one of nothing but padding."""
    bins = pack_best_fit(np.array([len(row) for row in rows]), max_length)
    assert 3 <= len(bins) < len(rows)
    items = [[rows[number] for number in numbers] for numbers in bins]
    return collate_packed([*items, []], pad_id=0, max_length=max_length)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_several_packed_sequences_equal_their_rows_alone(attention):
    model = _model(attention)
    rows = _rows(seed=1, lengths=(9, 14, 5, 11, 24, 3, 17, 8))
    alone = [_gradients(model, _padded([row])) for row in rows]
    totals, tokens, gradients = zip(*alone, strict=True)
    summed = {name: sum(gradient[name] for gradient in gradients) for name in gradients[0]}
    packed = _gradients(model, _packed_as_loaded(rows, 24))
    _assert_equal((sum(totals), sum(tokens), summed), packed)


@pytest.mark.nightly
def test_several_packed_sequences_score_as_their_rows_alone_with_flex_attention():
    """Without gradients: torch has no backward pass of FlexAttention on a CPU."""
    rows = _rows(seed=1, lengths=(9, 14, 5, 11, 24, 3, 17, 8))
    alone = [CausalLM().score(_model("eager"), _padded([row])) for row in rows]
    model = _model("flex_attention")
    packed = CausalLM().score(model, _packed_as_loaded(rows, 24))
    assert packed.tokens == sum(score.tokens for score in alone)
    assert packed.loss == pytest.approx(sum(score.loss for score in alone), rel=2e-6)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mixtral"])
def test_packed_equals_padded_in_other_families(family):
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, MixtralConfig

    common = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    llama_like = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        **common,
    }
    config = {
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common),
        "gemma3": lambda: Gemma3TextConfig(
            sliding_window=8, layer_types=["sliding_attention", "full_attention"], **llama_like
        ),
        "mixtral": lambda: MixtralConfig(num_local_experts=4, **llama_like),
    }[family]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    rows = _rows()
    _assert_equal(_gradients(model, _padded(rows)), _gradients(model, _packed(rows)))


def test_batch_without_supervised_tokens_has_a_zero_gradient_everywhere():
    """The last step of an epoch may give a rank padding only; every parameter takes part."""
    model = _model()
    for collate in (collate_padded, collate_packed):
        batch = collate([[]], pad_id=0, max_length=64)
        total, tokens, gradients = _gradients(model, batch)
        assert (float(total), tokens) == (0.0, 0)
        assert all(bool((g == 0).all()) for g in gradients.values())


def test_score_counts_hits_and_loss():
    model = _model()
    rows = _rows()
    batch = _padded(rows)
    score = CausalLM().score(model, batch)
    loss = CausalLM().loss(model, batch)
    assert score.tokens == loss.tokens
    assert score.loss == pytest.approx(loss.total.item())
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    targets = batch.labels[:, 1:]
    hits = (logits[:, :-1].argmax(-1) == targets)[targets != -100].sum()
    assert score.correct == int(hits)
    # A model that knows the answer.
    best = torch.zeros(*batch.input_ids.shape, VOCAB)
    best.scatter_(2, batch.input_ids.roll(-1, 1)[..., None], 9.0)

    class Oracle(torch.nn.Module):
        def forward(self, **_: Any) -> Any:
            return type("Output", (), {"logits": best})()

    assert CausalLM().score(Oracle(), batch).correct == score.tokens


@pytest.mark.parametrize("needs_all_logits", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_each_part_of_the_data_has_the_loss_of_its_rows(packed, needs_all_logits):
    model = _model()
    rows = [
        Row(row.input_ids, row.supervised, source=source)
        for row, source in zip(_rows(), (2, 0, 2, 0), strict=True)
    ]
    collate, items = (collate_packed, [rows]) if packed else (collate_padded, [[r] for r in rows])
    batch = collate(items, pad_id=0, max_length=64, num_sources=3)
    forward = FullLogits(model) if needs_all_logits else model
    found = CausalLM().loss(forward, batch)
    assert found.by_source is not None
    assert not found.by_source.requires_grad
    for source in range(3):
        mine = [row for row in rows if row.source == source]
        if not mine:
            assert found.by_source[source].tolist() == [0, 0]
            continue
        wanted = CausalLM().loss(model, _padded(mine))
        assert wanted.by_source is None
        torch.testing.assert_close(
            found.by_source[source, 0], wanted.total.detach(), rtol=1e-5, atol=0
        )
        assert found.by_source[source, 1] == wanted.tokens
    score = CausalLM().score(forward, batch)
    torch.testing.assert_close(score.by_source, found.by_source, rtol=1e-5, atol=0)
    assert score.loss == pytest.approx(float(found.by_source[:, 0].sum()), rel=1e-5)


def test_a_batch_of_padding_adds_nothing_to_any_part():
    batch = collate_packed([[]], pad_id=0, max_length=64, num_sources=2)
    found = CausalLM().loss(_model(), batch)
    found.total.backward()
    assert found.by_source.tolist() == [[0, 0], [0, 0]]
