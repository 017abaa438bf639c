from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from bigft.data.loading.collate import Batch, collate_packed, collate_padded
from bigft.data.tokens.tokenize import Row

PAD = 9

rows_of_any_kind = st.lists(
    st.tuples(st.integers(10, 99), st.booleans()), min_size=1, max_size=12
).map(
    lambda pairs: Row(
        np.array([token for token, _ in pairs], dtype=np.int32),
        np.array([False] + [mark for _, mark in pairs[1:]], dtype=np.bool_),
    )
)


def unpack(batch: Batch) -> list[list[tuple[list[int], list[int]]]]:
    """Cut sequences where positions restart; the tokens and labels of each example."""
    found = []
    for ids, labels, positions in zip(
        batch.input_ids, batch.labels, batch.position_ids, strict=True
    ):
        starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(ids)]
        pieces = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
        for piece in pieces:
            expected = torch.arange(piece.stop - piece.start)
            assert torch.equal(positions[piece], expected)
        examples = [(ids[piece].tolist(), labels[piece].tolist()) for piece in pieces]
        found.append([example for example in examples if example[0][0] != PAD])
    return found


def expect(rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    return [
        (row.input_ids.tolist(), np.where(row.supervised, row.input_ids, -100).tolist())
        for row in rows
    ]


@given(st.lists(st.lists(rows_of_any_kind, max_size=4), min_size=1, max_size=3))
def test_packed_sequences_hold_the_rows_unchanged(items: list[list[Row]]) -> None:
    batch = collate_packed(items, pad_id=PAD, max_length=64)
    assert unpack(batch) == [expect(rows) for rows in items]
    assert batch.attention_mask is None
    assert batch.supervised_tokens == sum(row.supervised.sum() for rows in items for row in rows)


@given(st.lists(rows_of_any_kind, min_size=1, max_size=3))
def test_padded_sequences_hold_the_rows_unchanged(rows: list[Row]) -> None:
    batch = collate_padded([[row] for row in rows], pad_id=PAD, max_length=64)
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [len(row) for row in rows]
    for number, (ids, labels) in enumerate(expect(rows)):
        assert batch.input_ids[number, : len(ids)].tolist() == ids
        assert batch.labels[number, : len(ids)].tolist() == labels
        assert (batch.input_ids[number, len(ids) :] == PAD).all()
        assert (batch.labels[number, len(ids) :] == -100).all()


def build_row(length: int) -> Row:
    return Row(np.arange(10, 10 + length, dtype=np.int32), np.arange(length) > 0)


@pytest.mark.parametrize(
    ("lengths", "max_length", "width"),
    [([[3]], 64, 8), ([[8]], 64, 8), ([[5, 4], [2]], 64, 16), ([[11]], 12, 12), ([[]], 64, 8)],
)
def test_width_is_a_multiple_of_8_within_the_limit(
    lengths: list[list[int]], max_length: int, width: int
) -> None:
    items = [[build_row(length) for length in item] for item in lengths]
    batch = collate_packed(items, pad_id=PAD, max_length=max_length)
    assert batch.input_ids.shape == (len(items), width)
    assert batch.labels.dtype == batch.position_ids.dtype == torch.int64


def test_an_empty_item_is_padding_that_can_be_computed_with() -> None:
    for collate in (collate_packed, collate_padded):
        batch = collate([[build_row(3)], []], pad_id=PAD, max_length=64)
        assert batch.supervised_tokens == 2
        assert (batch.input_ids[1] == PAD).all()
    assert batch.attention_mask is not None
    assert batch.attention_mask[1].all()


def test_two_rows_cannot_share_a_padded_sequence() -> None:
    with pytest.raises(ValueError, match="2 rows in one padded sequence"):
        collate_padded([[build_row(3), build_row(2)]], pad_id=PAD, max_length=64)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_loss_equals_unpacked_loss(attention: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).eval()
    rows = [build_row(length) for length in (7, 3, 12, 5)]

    def sum_loss(batch: Batch) -> torch.Tensor:
        logits = model(
            batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
        ).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
        )

    packed = sum_loss(collate_packed([rows[:2], rows[2:]], pad_id=PAD, max_length=64))
    padded = sum_loss(collate_padded([[row] for row in rows], pad_id=PAD, max_length=64))
    alone = sum(sum_loss(collate_padded([[row]], pad_id=PAD, max_length=len(row))) for row in rows)
    torch.testing.assert_close(packed, alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(padded, alone, rtol=1e-6, atol=0)


def test_each_token_knows_its_part_where_there_are_several() -> None:
    rows = [Row(build_row(n).input_ids, build_row(n).supervised, source=n % 3) for n in (4, 3, 5)]
    packed = collate_packed([rows[:2], rows[2:]], pad_id=PAD, max_length=64, num_sources=3)
    assert packed.sources is not None
    assert packed.num_sources == 3
    assert packed.sources.tolist() == [[1] * 4 + [0] * 4, [2] * 5 + [0] * 3]
    padded = collate_padded([[row] for row in rows], pad_id=PAD, max_length=64, num_sources=3)
    assert padded.sources is not None
    assert [line[0] for line in padded.sources.tolist()] == [1, 0, 2]
    assert collate_packed([rows], pad_id=PAD, max_length=64).sources is None


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate_padded([[build_row(3)]], pad_id=PAD, max_length=64, num_sources=2).to("meta")
    assert batch.attention_mask is not None
    assert batch.sources is not None
    assert batch.num_sources == 2
    tensors = (
        batch.input_ids,
        batch.labels,
        batch.position_ids,
        batch.attention_mask,
        batch.sources,
    )
    assert {tensor.device.type for tensor in tensors} == {"meta"}
