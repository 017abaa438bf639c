"""Which runs there are, and what their settings are."""

import json

import pytest

from bigft.config.request import Request
from bigft.errors import ConfigError
from bigft.run.resolve import resolve
from bigft.selftest.rows import (
    PLACEMENTS,
    ROWS_PER_RANK,
    Row,
    choose_hidden_size,
    find_config,
    list_rows,
    make_settings,
    select_rows,
)


def test_every_layout_is_there_with_both_optimizers_and_with_accumulation():
    rows = list_rows()
    assert len({row.name for row in rows}) == len(rows)
    for placement in PLACEMENTS:
        mine = [row for row in rows if row.placement == placement]
        plain = {(r.optim, r.accumulation) for r in mine if r.precision == "fp32"}
        assert plain == {(o, n) for o in ("adamw", "adamw_8bit") for n in (1, 2)}
        assert {r.optim for r in mine if r.resumed} == {"adamw", "adamw_8bit"}


def test_rows_are_chosen_by_their_first_words_or_by_a_pattern():
    assert {row.placement for row in select_rows(["zero3"])} == {"zero3"}
    assert [row.name for row in select_rows(["zero3/adamw_8bit/fp32/x1"])] == [
        "zero3/adamw_8bit/fp32/x1"
    ]
    assert {row.precision for row in select_rows(["*/bf16/*"])} == {"bf16"}
    assert select_rows([]) == list_rows()
    both = select_rows(["zero3_offload", "zero0"])
    assert both == [row for row in list_rows() if row.placement in ("zero0", "zero3_offload")]


def test_a_name_of_no_row_is_refused():
    with pytest.raises(ConfigError, match="--rows zero4: names none.*zero3_nvme"):
        select_rows(["zero3", "zero4"])


@pytest.mark.parametrize("ranks", range(1, 17))
def test_no_8bit_block_is_cut_between_ranks(ranks):
    hidden = choose_hidden_size(ranks)
    assert hidden % 8 == 0, "four heads of even size"
    # bitsandbytes keeps what is smaller in fp32.
    assert hidden * hidden >= 4096
    for numel in (hidden * hidden, 2 * hidden * hidden, 256 * hidden):
        assert numel % (256 * ranks) == 0


@pytest.mark.parametrize("row", list_rows(), ids=lambda row: row.name)
def test_settings_give_the_run_that_the_name_says(tmp_path, row):
    (tmp_path / "model").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    settings = make_settings(row, tmp_path, 2, "/nowhere")
    path = str(find_config(PLACEMENTS[row.placement].config))
    ds = resolve(Request("train", settings=settings, config=path), {"WORLD_SIZE": "2"}).ds
    zero = ds["zero_optimization"]
    words = row.placement.split("_")
    assert zero["stage"] == int(words[0][-1])
    device = {"offload": "cpu", "nvme": "nvme"}.get(words[1] if words[1:] else "")
    wants_params = zero["stage"] == 3 and words[-1] in ("offload", "nvme")
    assert zero.get("offload_optimizer", {}).get("device") == device
    assert zero.get("offload_param", {}).get("device", "none") == (
        device if wants_params else "none"
    )
    assert bool(ds["bf16"]["enabled"]) == (row.precision == "bf16")
    assert ds["gradient_accumulation_steps"] == row.accumulation
    assert ds["train_batch_size"] == 2 * ROWS_PER_RANK


def test_a_row_travels_to_the_ranks_and_back():
    row = Row("zero2", "adamw", 2, "bf16", resumed=True)
    assert Row(**json.loads(json.dumps(row.to_dict()))) == row
    assert row.name == "zero2/adamw/bf16/x2/resumed"
