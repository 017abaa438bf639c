"""Pieces of weights, against the partitions that DeepSpeed makes (held by the benchmark's runs)."""

import pytest

from bigft.planner.architecture.weights import Weight
from bigft.planner.pieces import Piece, count_sub_groups, cut_weights, group_weights

WEIGHTS = (
    Weight("embed", (100, 8)),
    Weight("layers.0.norm", (8,)),
    Weight("layers.0.up", (31, 8)),
    Weight("head", (7, 7)),
)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_pieces_of_all_ranks_are_all_weights_once(stage, ranks):
    whole: dict[str, list[tuple[int, int]]] = {}
    for rank in range(ranks if stage else 1):
        for piece in cut_weights(WEIGHTS, stage, rank, ranks):
            whole.setdefault(piece.weight.name, []).append((piece.start, piece.numel))
    for weight in WEIGHTS:
        end = 0
        for start, numel in sorted(whole[weight.name]):
            assert start == end
            assert numel > 0
            end = start + numel
        assert end == weight.numel


def test_stage_3_cuts_every_weight_evenly():
    found = {piece.weight.name: piece for piece in cut_weights(WEIGHTS, 3, 1, 2)}
    assert (found["head"].start, found["head"].numel) == (25, 24)
    assert (found["embed"].start, found["embed"].numel) == (400, 400)


def test_stages_1_and_2_cut_a_row_of_weights_wherever_the_cut_falls():
    matrices, others = group_weights(WEIGHTS)
    assert [w.name for w in matrices] == ["embed", "layers.0.up", "head"]
    assert [w.name for w in others] == ["layers.0.norm"]
    # 1,097 elements and padding to a multiple of 2 ranks x 2: 550 for each.
    first = [p for p in cut_weights(WEIGHTS, 2, 0, 2) if len(p.weight.shape) > 1]
    second = [p for p in cut_weights(WEIGHTS, 2, 1, 2) if len(p.weight.shape) > 1]
    assert [(p.weight.name, p.start, p.numel) for p in first] == [("embed", 0, 550)]
    assert [(p.weight.name, p.start, p.numel) for p in second] == [
        ("embed", 550, 250),
        ("layers.0.up", 0, 248),
        ("head", 0, 49),
    ]


@pytest.mark.parametrize(
    ("start", "numel", "blocks"), [(0, 256, 1), (0, 257, 2), (255, 2, 2), (256, 256, 1), (10, 1, 1)]
)
def test_blocks_are_counted_from_the_start_of_the_weight(start, numel, blocks):
    assert Piece(Weight("w", (10_000,)), start, numel).num_blocks == blocks


def test_sub_groups_are_whole_pieces_until_they_are_large_enough():
    assert count_sub_groups(WEIGHTS, 1, 900) == [1048, 49, 8]
    assert count_sub_groups(WEIGHTS, 2, 10_000) == [549, 4]
