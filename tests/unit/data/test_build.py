import json
from itertools import islice
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.build import Data, build_data, build_evaluation
from bigft.data.section import DataSection
from bigft.errors import DataError

RECORDS = [{"prompt": f"{number} + 1 =", "answer": f" {number + 1}"} for number in range(200)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return str(tmp_path / "a.jsonl")


def build(section: DataSection, tokenizer: PreTrainedTokenizerFast) -> Data:
    return build_data(
        section,
        tokenizer=tokenizer,
        rank=0,
        local_rank=0,
        world_size=1,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        eval_batch_size=4,
        seed=1,
        barrier=lambda: None,
    )


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_all_rows_are_trained_on_or_held_out(
    tmp_path: Path, path: str, packing: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    section = DataSection.model_validate(
        {
            "train": path,
            "loading": {"cache_dir": str(tmp_path)},
            "packing": packing,
            "eval_fraction": 0.1,
        }
    )
    data = build(section, tokenizer)
    info = data.info
    assert (info["format"], info["rows"], info["rejected_rows"]) == ("instruct", 200, 0)
    assert info["train_rows"] + info["eval_rows"] == 200
    assert 5 < info["eval_rows"] < 40
    epoch = list(islice(data.train.steps_from(0), data.train.steps_per_epoch))
    assert data.evaluation is not None
    learned = sum(step.supervised_tokens for step in epoch) + data.evaluation.supervised_tokens
    assert learned == info["supervised_tokens"]
    texts = [tokenizer.decode(ids) for batch in epoch[0].micro_batches for ids in batch.input_ids]
    assert all("<|im_start|>user\n" in text for text in texts)
    assert (epoch[0].micro_batches[0].attention_mask is None) == (packing == "best_fit")
    if packing == "best_fit":
        assert info["train_sequences"] < 10
        assert info["packing_utilisation"] > 0.5
    else:
        assert info["train_sequences"] == info["train_rows"]


def test_a_folder_of_its_own_is_evaluated_as_a_whole(
    tmp_path: Path, path: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "e.txt").write_text("Held out.")
    section = DataSection(
        train=path, eval=str(tmp_path / "e.txt"), loading={"cache_dir": str(tmp_path)}
    )
    data = build(section, tokenizer)
    assert (data.info["train_rows"], data.info["eval_rows"]) == (200, 1)
    assert data.evaluation is not None
    (batch,) = data.evaluation.eval_batches()
    assert tokenizer.decode(batch.input_ids[0]).startswith("Held out.<|endoftext|>")


def test_nothing_is_held_out_when_nothing_is_asked_for(
    tmp_path: Path, path: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = build(
        DataSection(train=path, loading={"cache_dir": str(tmp_path)}, eval_fraction=0), tokenizer
    )
    assert data.evaluation is None
    assert data.info["train_rows"] == 200


def test_a_missing_chat_template_is_filled_in_for_conversations_only(
    tmp_path: Path, path: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "e.txt").write_text("Raw.")
    tokenizer.chat_template = None
    build(
        DataSection(train=str(tmp_path / "e.txt"), loading={"cache_dir": str(tmp_path)}), tokenizer
    )
    assert tokenizer.chat_template is None
    for _ in range(2):
        build(DataSection(train=path, loading={"cache_dir": str(tmp_path)}), tokenizer)
    assert "<|im_start|>" in str(tokenizer.chat_template)
    assert caplog.text.count("no chat template") == 1


def test_rows_with_nothing_to_learn_are_a_data_error(
    tmp_path: Path, path: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    section = DataSection(train=path, loading={"cache_dir": str(tmp_path)}, max_length=4)
    with pytest.raises(DataError, match="none of the 200 rows"):
        build(section, tokenizer)


def test_evaluation_alone_takes_every_row(
    tmp_path: Path, path: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    section = DataSection(train=path, loading={"cache_dir": str(tmp_path)})
    loader, info = build_evaluation(section, tokenizer=tokenizer, batch_size=3)
    found = sum(batch.supervised_tokens for batch in loader.eval_batches())
    assert found == loader.supervised_tokens == info["supervised_tokens"]
    assert info["rows"] == 200
