import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.build import Data, build_data, build_evaluation
from bigft.data.loading.loader import Share
from bigft.data.order.cursor import Cursor
from bigft.data.section import DataSection
from bigft.data.store.rejected import Rejected
from bigft.errors import DataError

RECORDS = [{"prompt": f"{number} + 1 =", "answer": f" {number + 1}"} for number in range(200)]


@pytest.fixture
def path(write_lines) -> str:
    return write_lines("a.jsonl", RECORDS)


def build(section: DataSection, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Data:
    return build_data(
        section,
        tokenizer=tokenizer,
        share=Share(2, gradient_accumulation_steps=2),
        local_rank=0,
        eval_batch_size=4,
        barrier=lambda: None,
        **{"seed": 1, **more},
    )


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_all_rows_are_trained_on_or_held_out(
    path: str, packing: str, make_section, tokenizer
) -> None:
    data = build(make_section(train=path, packing=packing, eval_fraction=0.1), tokenizer)
    info = data.info
    assert (info["rows"], info["rejected_rows"], info["sources"]) == (200, 0, ["a"])
    assert info["train_rows"] + info["eval_rows"] == 200
    assert 5 < info["eval_rows"] < 40
    assert data.train.steps_per_epoch is not None
    epoch = list(islice(data.train.steps_from(Cursor()), data.train.steps_per_epoch))
    assert data.evaluation is not None
    learned = sum(step.supervised_tokens for step in epoch) + data.evaluation.supervised_tokens
    assert learned == info["supervised_tokens"]
    assert epoch[0].micro_batches[0].sources is None
    assert (epoch[0].micro_batches[0].attention_mask is None) == (packing == "best_fit")
    if packing == "best_fit":
        assert info["train_sequences"] < 10
        assert info["packing_utilisation"] > 0.5
    else:
        assert info["train_sequences"] == info["train_rows"]


def test_the_seed_of_a_run_decides_its_copies_and_without_copies_no_row(
    path: str, make_section, tokenizer, tmp_path: Path
) -> None:
    def count_stores(*seeds: int, **augment: Any) -> int:
        cache = tmp_path / json.dumps(augment)[:9]
        section = make_section(
            train=path, clean={"augment": augment}, loading={"cache_dir": str(cache)}
        )
        for seed in seeds:
            build(section, tokenizer, seed=seed)
        return len(list((cache / "tokens").iterdir()))

    assert count_stores(1, 2) == 1
    assert count_stores(1, 2, 1, copies=1, delete=0.4) == 2
    assert count_stores(1, 2, seed=5, copies=1, delete=0.4) == 1


def test_without_packing_neighbours_have_similar_lengths(
    make_section, write_lines, tokenizer
) -> None:
    records = [{"text": "word " * (1 + 7 * n % 100)} for n in range(300)]
    section = make_section(train=write_lines("b.jsonl", records), packing="none", eval_fraction=0)
    data = build(section, tokenizer)
    batches = [
        batch
        for step in islice(data.train.steps_from(Cursor()), data.train.steps_per_epoch)
        for batch in step.micro_batches
    ]
    real = sum(int(batch.attention_mask.sum()) for batch in batches)
    assert real > 0.85 * sum(batch.input_ids.numel() for batch in batches)


def test_data_of_its_own_is_evaluated_as_a_whole(
    tmp_path: Path, path: str, make_section, tokenizer
) -> None:
    (tmp_path / "e.txt").write_text("Held out.")
    section = make_section(train=path, eval=str(tmp_path / "e.txt"))
    data = build(section, tokenizer)
    assert (data.info["train_rows"], data.info["eval_rows"]) == (200, 1)
    assert (data.sources, data.eval_sources) == (("a",), ("e",))
    assert len(data.rejected_files) == 2
    assert data.evaluation is not None
    (batch,) = data.evaluation.eval_batches()
    assert tokenizer.decode(batch.input_ids[0]).startswith("Held out.<|endoftext|>")


def test_nothing_is_held_out_when_nothing_is_asked_for(path: str, make_section, tokenizer) -> None:
    data = build(make_section(train=path, eval_fraction=0), tokenizer)
    assert data.evaluation is None
    assert data.info["train_rows"] == 200


def test_weighted_parts_have_their_shares_and_are_told_apart(
    path: str, make_section, write_lines, tokenizer
) -> None:
    other = write_lines("b.jsonl", [{"text": f"{n} b"} for n in range(100)])
    section = make_section(train=f"{path}:1,{other}:3", max_length=32, eval_fraction=0.1)
    data = build(section, tokenizer)
    assert data.sources == data.eval_sources == ("a", "b")
    counts = [0, 0]
    for step in islice(data.train.steps_from(Cursor()), data.train.steps_per_epoch):
        for batch in step.micro_batches:
            assert batch.num_sources == 2
            for number in range(2):
                counts[number] += int((batch.labels != -100)[batch.sources == number].sum())
    # Prompts do not count in the loss, and weights are shares of all tokens.
    assert counts[1] > 3 * counts[0]
    assert data.evaluation is not None
    found = {int(n) for b in data.evaluation.eval_batches() for n in b.sources.flatten()}
    assert found == {0, 1}


def test_problems_of_all_parts_are_told_at_once(
    path: str, make_section, write_lines, tokenizer
) -> None:
    bad, worse = write_lines("b.jsonl", ["{"]), write_lines("c.jsonl", [{"text": ""}])
    section = make_section(train=f"{path},{bad}", eval=worse)
    with pytest.raises(DataError) as caught:
        build(section, tokenizer)
    assert f"--data: {bad}:1: " in str(caught.value)
    assert f"--eval_data: {worse}:1: " in str(caught.value)


def test_skipped_rows_can_be_found(make_section, write_lines, tokenizer) -> None:
    path = write_lines("a.jsonl", [*RECORDS, "{"])
    data = build(make_section(train=path, on_bad_row="skip"), tokenizer)
    assert data.info["rejected_rows"] == data.info["bad_rows"] == 1
    (line,) = "".join(file.read_text() for file in data.rejected_files).splitlines()
    assert json.loads(line)["origin"] == f"{path}:201"


def test_a_missing_chat_template_is_filled_in_for_conversations_only(
    tmp_path: Path, make_section, write_lines, tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "e.txt").write_text("Raw.")
    tokenizer.chat_template = None
    build(make_section(train=str(tmp_path / "e.txt")), tokenizer)
    assert tokenizer.chat_template is None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write_lines("chat.jsonl", [{"messages": turns}])
    for _ in range(2):
        build(make_section(train=path), tokenizer)
    assert "<|im_start|>" in str(tokenizer.chat_template)
    assert caplog.text.count("no chat template") == 1


def test_evaluation_alone_takes_every_row(path: str, make_section, tokenizer) -> None:
    section = make_section(train=path)
    loader, info, names = build_evaluation(section, tokenizer=tokenizer, share=Share(3))
    found = sum(batch.supervised_tokens for batch in loader.eval_batches())
    assert found == loader.supervised_tokens == info["supervised_tokens"]
    assert (info["rows"], names) == (200, ("a",))


# Streams.


def stream(path: str, make_section: Any, **more: Any) -> DataSection:
    loading = {"streaming": True, **more.pop("loading", {})}
    return make_section(train=path, loading=loading, **more)


def test_a_stream_leaves_nothing_of_the_training_data_on_the_disk(
    path: str, tmp_path: Path, make_section, write_lines, tokenizer
) -> None:
    own = write_lines("e.jsonl", [{"text": "Held out."}])
    data = build(stream(path, make_section, eval=own), tokenizer)
    step = next(data.train.steps_from(Cursor()))
    assert step.supervised_tokens > 100
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1
    assert data.evaluation is not None
    assert (data.sources, data.eval_sources) == (("a",), ("e",))
    assert data.train.steps_per_epoch is None
    again = build(stream(path, make_section, eval=own), tokenizer)
    assert again.info["digest"] == data.info["digest"]
    write_lines("a.jsonl", RECORDS[1:])
    assert build(stream(path, make_section), tokenizer).info["digest"] != data.info["digest"]


def test_weights_and_streams_do_not_go_together(path: str, make_section, tokenizer) -> None:
    with pytest.raises(DataError, match="weights need all rows at once.*leave the weights out"):
        build(stream(f"{path}:2", make_section), tokenizer)


def test_bad_rows_of_a_stream_are_told_or_end_it(make_section, write_lines, tokenizer) -> None:
    path = write_lines("a.jsonl", [*RECORDS[:5], "{", *RECORDS[5:]])
    told: list[Rejected] = []
    data = build(stream(path, make_section, on_bad_row="skip"), tokenizer, reject=told.extend)
    next(data.train.steps_from(Cursor()))
    assert {row.origin for row in told} == {f"{path}:6"}
    told.clear()
    data = build(stream(path, make_section), tokenizer, reject=told.extend)
    with pytest.raises(DataError, match=f"{path}:6"):
        next(data.train.steps_from(Cursor()))
    assert told == []
