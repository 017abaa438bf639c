import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.prepare import open_store, open_stores
from bigft.data.section import DataSection
from bigft.data.store import TokenStore
from bigft.errors import DataError


def write_jsonl(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def open_one(
    spec: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, **more: object
) -> TokenStore:
    section = DataSection.model_validate(
        {"loading": {"cache_dir": str(tmp_path / "cache")}, **more}
    )
    return open_store(spec, "--data", section, tokenizer)


def test_files_of_several_formats_make_one_store(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    records = [
        {"messages": chat, "text": None},
        {"messages": None, "text": "raw"},
        {"prompt": "a", "completion": "b"},
        {"messages": chat[:1], "text": None},
    ]
    store = open_one(write_jsonl(tmp_path / "a.jsonl", records), tmp_path, tokenizer)
    assert store.info.formats == {"chat": 2, "text": 1, "instruct": 1}
    assert (store.info.rows, store.info.rejected_rows, store.info.conversations) == (3, 1, 2)
    texts = [tokenizer.decode(store.load_row(number).input_ids) for number in range(3)]
    assert texts[1:] == ["raw<|endoftext|>", "ab<|endoftext|>"]


def test_a_store_is_used_again_until_something_changes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one two three four five six"}])
    first = open_one(path, tmp_path, tokenizer)
    written = (first.folder / "tokens.npy").stat().st_mtime_ns
    again = open_one(path, tmp_path, tokenizer)
    assert (again.folder / "tokens.npy").stat().st_mtime_ns == written
    assert again.folder == first.folder
    folders = {first.folder, open_one(path, tmp_path, tokenizer, max_length=8).folder}
    folders.add(open_one(path, tmp_path, tokenizer, train_on="all").folder)
    tokenizer.chat_template = "{{ messages }}"
    folders.add(open_one(path, tmp_path, tokenizer).folder)
    tokenizer.add_tokens(["three"])
    folders.add(open_one(path, tmp_path, tokenizer).folder)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "other"}])
    folders.add(open_one(path, tmp_path, tokenizer).folder)
    assert len(folders) == 6


def test_bad_records_are_listed_together_with_their_places(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    records: list[dict[str, object]] = [{"text": "ok"}, {"text": 3}, {"text": ""}, {"text": "ok"}]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError) as caught:
        open_one(path, tmp_path, tokenizer)
    assert f"--data: {path}:2: `text` has to be text, not int: 3" in str(caught.value)
    assert f"--data: {path}:3: `text` is empty" in str(caught.value)
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []

    path = write_jsonl(tmp_path / "b.jsonl", [{"text": ""}] * 50)
    with pytest.raises(DataError, match="may be more") as caught:
        open_one(path, tmp_path, tokenizer)
    assert str(caught.value).count("is empty") == 10


def test_unknown_columns_are_shown_with_their_place(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"mesages": []}])
    with pytest.raises(DataError, match=r"--data: .*a\.jsonl:1: no format fits .*\(mesages\)"):
        open_one(path, tmp_path, tokenizer)


def open_on_two_ranks(
    specs: list[tuple[str, str]], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> list[list[TokenStore] | BaseException]:
    barrier = threading.Barrier(2, timeout=60)

    def run(local_rank: int) -> list[TokenStore] | BaseException:
        section = DataSection(loading={"cache_dir": str(tmp_path / "cache")})
        try:
            return open_stores(
                specs,
                section,
                tokenizer,
                local_rank=local_rank,
                barrier=lambda: barrier.wait() and None,
            )
        except DataError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def test_other_ranks_open_what_local_rank_0_made(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    two = write_jsonl(tmp_path / "b.jsonl", [{"text": "two"}])
    results = open_on_two_ranks([(one, "--data"), (two, "--eval_data")], tmp_path, tokenizer)
    folders = [[store.folder for store in result] for result in results if isinstance(result, list)]
    assert len(folders) == 2
    assert folders[0] == folders[1]
    assert len(set(folders[0])) == 2


def test_all_ranks_fail_with_the_same_words_and_a_repair_is_noticed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.jsonl"
    specs = [(str(path), "--data"), (f"{tmp_path}/b.jsonl", "--eval_data")]
    one, two = open_on_two_ranks(specs, tmp_path, tokenizer)
    assert isinstance(one, DataError)
    assert isinstance(two, DataError)
    assert str(one) == str(two)
    assert f"--data={path}: no such file" in str(one)
    assert f"--eval_data={tmp_path}/b.jsonl: no such file" in str(one)
    write_jsonl(path, [{"text": "one"}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "two"}])
    assert all(isinstance(r, list) for r in open_on_two_ranks(specs, tmp_path, tokenizer))
    path.unlink()
    assert all(isinstance(r, DataError) for r in open_on_two_ranks(specs, tmp_path, tokenizer))
