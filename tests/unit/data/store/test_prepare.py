"""Tokenising once, on real files."""

import json
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.build import Opened, _open_shared
from bigft.data.layouts.next_token import NextToken
from bigft.data.section import DataSection
from bigft.data.sources.find import find_sources
from bigft.data.sources.progress import tell_nobody
from bigft.data.store import prepare
from bigft.data.store.prepare import choose_num_proc, open_store
from bigft.data.store.store import TokenStore
from bigft.errors import DataError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def open_one(
    spec: str, section: DataSection, tokenizer: PreTrainedTokenizerFast, flag: str = "--data"
) -> TokenStore:
    (part,) = find_sources(spec, flag)
    return open_store(part, section, tokenizer)


def read_rejected(store: TokenStore) -> list[Any]:
    return [json.loads(line) for line in store.rejected_file.read_text().splitlines()]


def list_unfinished(tmp_path: Path) -> list[Path]:
    tokens = tmp_path / "cache" / "tokens"
    return list(tokens.iterdir()) if tokens.exists() else []


# What becomes of rows.


def test_rows_of_several_formats_make_one_store(make_section, write_lines, tokenizer) -> None:
    records = [
        {"messages": CHAT, "text": None},
        {"messages": None, "text": "raw"},
        {"prompt": "a", "completion": "b"},
        {"messages": CHAT[:1], "text": None},
        {"messages": CHAT},
        {"messages": CHAT},
    ]
    store = open_one(write_lines("a.jsonl", records), make_section(), tokenizer)
    info = store.info
    assert info.formats == {"chat": 4, "text": 1, "pairs": 1}
    assert (info.records, info.rows, info.unsupervised_rows, info.bad_rows) == (6, 5, 1, 0)
    assert info.conversations == 4
    texts = [tokenizer.decode(store.load_row(number).input_ids) for number in range(3)]
    assert texts[1:] == ["raw<|endoftext|>", "ab<|endoftext|>"]
    (rejected,) = read_rejected(store)
    assert rejected["origin"].endswith("a.jsonl:4")
    assert rejected["reason"] == "no token to learn"


def test_long_texts_are_pieces_of_one_example(make_section, write_lines, tokenizer) -> None:
    path = write_lines("a.jsonl", [{"text": "one"}, {"text": "two three four " * 20}])
    store = open_one(path, make_section(max_length=16), tokenizer)
    assert store.info.split_rows == 1
    assert store.pieces.tolist() == [0, *range(len(store) - 1)]
    assert len(set(store.digests.tolist())) == 2
    assert store.lengths.max() == 16


def test_unanswered_pieces_of_an_example_are_no_complaint(
    make_section, write_lines, tokenizer
) -> None:
    record = {"prompt": "two three four " * 20, "completion": "five"}
    path = write_lines("a.jsonl", [record])
    store = open_one(path, make_section(max_length=16, overlong="split"), tokenizer)
    assert len(store) == 1
    assert store.pieces.tolist() != [0]
    assert store.info.unsupervised_rows == 0
    assert read_rejected(store) == []


# Bad rows.

BAD = [
    {"text": "ok"},
    {"text": 3},
    "{not JSON",
    {"text": ""},
    {"text": "ok"},
    {"mesages": []},
]


def test_every_bad_row_is_named_with_file_line_and_reason(
    tmp_path, make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", BAD)
    with pytest.raises(DataError) as caught:
        open_one(path, make_section(), tokenizer)
    text = str(caught.value)
    assert f"--data: {path}:2: `text` has to be text, not a number" in text
    assert f"--data: {path}:3: not JSON" in text
    assert f"--data: {path}:4: `text` is empty" in text
    assert f"--data: {path}:6: no format fits" in text
    assert "--data.on_bad_row skip" in text
    assert list_unfinished(tmp_path) == []
    # It does not end after the first row of the same kind, nor go on forever.
    path = write_lines("b.jsonl", [{"text": "ok"}] + [{"text": ""}] * 5000)
    with pytest.raises(DataError) as caught:
        open_one(path, make_section(), tokenizer, "--eval_data")
    text = str(caught.value)
    assert text.startswith(f"--eval_data: {path}:2: `text` is empty (also {path}:3, ")
    assert text.count(path) == 1 + 10


def test_reading_ends_soon_after_enough_bad_rows(
    make_section, write_lines, tokenizer, monkeypatch
) -> None:
    path = write_lines("a.jsonl", [{"text": ""}] * 20 + [{"text": "good"}] * 5000)
    seen = []
    original = prepare._Problems.see
    monkeypatch.setattr(
        prepare._Problems, "see", lambda self, rows: (seen.append(rows), original(self, rows))
    )
    with pytest.raises(DataError):
        open_one(path, make_section(loading={"num_proc": 0}), tokenizer)
    assert len(seen) == 1
    # One bad row is not enough to stop at once: there may be others to name.
    seen.clear()
    path = write_lines("b.jsonl", [{"text": ""}] + [{"text": "good"}] * 1100 + [{"text": ""}])
    with pytest.raises(DataError, match=r"b\.jsonl:1102"):
        open_one(path, make_section(loading={"num_proc": 0}), tokenizer)
    # Unless that takes long.
    seen.clear()
    monkeypatch.setattr(prepare, "_SECONDS_FOR_MORE", -1.0)
    with pytest.raises(DataError) as caught:
        open_one(path, make_section(loading={"num_proc": 0}), tokenizer)
    assert len(seen) == 1
    assert "1102" not in str(caught.value)


def test_skipped_rows_are_kept_with_their_place_and_the_reason(
    make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", BAD)
    store = open_one(path, make_section(on_bad_row="skip"), tokenizer)
    assert (store.info.records, store.info.rows, store.info.bad_rows) == (6, 2, 4)
    rejected = read_rejected(store)
    assert [line["origin"] for line in rejected] == [f"{path}:{n}" for n in (2, 3, 4, 6)]
    assert [line["row"] for line in rejected] == [
        line if isinstance(line, str) else json.dumps(line)
        for line in (BAD[n] for n in (1, 2, 3, 5))
    ]
    assert "not JSON" in rejected[1]["reason"]


def test_nothing_but_bad_rows_is_an_error_even_when_they_may_be_skipped(
    make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"text": ""}] * 3)
    with pytest.raises(DataError, match="is empty"):
        open_one(path, make_section(on_bad_row="skip"), tokenizer)


def test_empty_rows_can_be_left_out_and_counted(make_section, write_lines, tokenizer) -> None:
    path = write_lines("a.jsonl", [{"text": ""}, {"text": "x"}, {"text": " "}])
    store = open_one(path, make_section(clean={"empty": "drop"}), tokenizer)
    assert (len(store), store.info.bad_rows) == (1, 0)
    assert store.info.touched["dropped_empty"] == 2
    path = write_lines("b.jsonl", [{"text": ""}])
    with pytest.raises(DataError, match="no row is left: of 1 records, 1 dropped empty"):
        open_one(path, make_section(clean={"empty": "drop"}), tokenizer)


def test_rows_that_are_all_too_long_are_counted_as_such(
    make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"text": "one two three " * 9}] * 3)
    with pytest.raises(DataError) as caught:
        open_one(path, make_section(max_length=4, overlong="drop"), tokenizer)
    said = f"--data={path}: no row is left: of 3 records, 3 dropped by overlong"
    assert str(caught.value) == said


@pytest.mark.parametrize("settings", [{}, {"on_bad_row": "skip"}, {"columns": {"prompt": "ask"}}])
def test_columns_that_never_fit_are_a_matter_of_settings(
    settings: dict[str, Any], make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"query_": "a", "reply_": "b"}] * 40)
    with pytest.raises(DataError) as caught:
        open_one(path, make_section(**settings), tokenizer)
    text = str(caught.value)
    assert "mend" not in text
    assert "--data.columns.prompt ask" in text
    assert "--data.format chat         {" in text


def test_one_row_of_other_columns_is_a_matter_of_that_row(
    make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"text": "fine"}, {"foo": 1}])
    with pytest.raises(DataError, match=r"no format fits.*\nmend these rows"):
        open_one(path, make_section(), tokenizer)


def test_too_many_rows_with_nothing_to_learn_are_refused_and_named(
    make_section, write_lines, tokenizer
) -> None:
    silent, good = {"messages": CHAT[:1]}, {"messages": CHAT}
    path = write_lines("a.jsonl", [good, silent, good, silent, good])
    with pytest.raises(DataError) as caught:
        open_one(path, make_section(), tokenizer)
    text = str(caught.value)
    assert f"--data: 2 rows (40%) have no token to learn: {path}:2, {path}:4;" in text
    assert "--data.on_bad_row skip" in text
    store = open_one(path, make_section(on_bad_row="skip"), tokenizer)
    assert (len(store), store.info.unsupervised_rows) == (3, 2)
    # One in five may be an accident.
    path = write_lines("b.jsonl", [good, silent, good, good, good])
    assert len(open_one(path, make_section(), tokenizer)) == 4


def test_answers_behind_the_last_token_are_the_fault_of_the_length(
    make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"prompt": "a b c d e f g h", "completion": "x"}] * 3)
    with pytest.raises(DataError, match=r"3 rows \(100%\) .*--max_length=4 .*overlong split"):
        open_one(path, make_section(max_length=4), tokenizer)


# Once and not again.


def test_another_table_of_synonyms_makes_other_copies(
    tmp_path, make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"text": "one big two big three big " * 9}])
    table = tmp_path / "synonyms.json"
    section = make_section(clean={"augment": {"copies": 3, "synonyms": str(table)}})
    stores = []
    for word in ("large", "great", "large"):
        table.write_text(json.dumps({"big": [word]}))
        stores.append(open_one(path, section, tokenizer).folder)
    assert stores[0] == stores[2] != stores[1]


def test_a_store_is_used_again_until_something_changes(
    tmp_path, make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"text": "one two three four five six"}])
    first = open_one(path, make_section(), tokenizer)
    written = (first.folder / "tokens.npy").stat().st_mtime_ns
    for same in (
        {"eval_fraction": 0.5},
        {"packing": "none"},
        {"loading": {"num_workers": 0, "num_proc": 1}},
        {"clean": {"test_fraction": 0.3, "duplicates": "drop_exact", "similarity": 0.5}},
    ):
        again = open_one(path, make_section(**same), tokenizer)
        assert again.folder == first.folder
        assert (again.folder / "tokens.npy").stat().st_mtime_ns == written
    folders = {first.folder}
    for other in (
        {"max_length": 8},
        {"train_on": "all"},
        {"overlong": "drop"},
        {"on_bad_row": "skip"},
        {"format": "text"},
        {"clean": {"strip": True}},
        {"clean": {"duplicates": "drop_near"}},
    ):
        folders.add(open_one(path, make_section(**other), tokenizer).folder)
    tokenizer.chat_template = "{{ messages }}"
    folders.add(open_one(path, make_section(), tokenizer).folder)
    tokenizer.add_tokens(["three"])
    folders.add(open_one(path, make_section(), tokenizer).folder)
    write_lines("a.jsonl", [{"text": "other"}])
    folders.add(open_one(path, make_section(), tokenizer).folder)
    assert len(folders) == 11


def test_opening_again_tokenises_nothing(make_section, write_lines, tokenizer, monkeypatch) -> None:
    path = write_lines("a.jsonl", [{"text": "one"}])
    open_one(path, make_section(), tokenizer)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(prepare, "tokenize_chunks", fail)
    assert len(open_one(path, make_section(), tokenizer)) == 1
    with pytest.raises(AssertionError, match="tokenised again"):
        open_one(path, make_section(max_length=8), tokenizer)


def _open_and_log(path: str, section: DataSection, tokenizer: Any, log: Path, gate: Any) -> None:
    original = prepare.tokenize_chunks

    def tokenize(*arguments: Any) -> Any:
        with log.open("a") as file:
            file.write("tokenised\n")
        threading.Event().wait(0.3)  # Time for the other to find nothing in the cache.
        return original(*arguments)

    prepare.tokenize_chunks = tokenize
    gate.wait()
    assert len(open_one(path, section, tokenizer)) == 40


def test_two_processes_at_once_tokenise_once(
    tmp_path, make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"text": f"one {number}"} for number in range(40)])
    context = multiprocessing.get_context("fork")
    gate, log = context.Barrier(2), tmp_path / "log"
    arguments = (path, make_section(loading={"num_proc": 0}), tokenizer, log, gate)
    both = [context.Process(target=_open_and_log, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "tokenised\n"
    assert len(list_unfinished(tmp_path)) == 1, "the store, and no lock or unfinished folder"


@pytest.mark.parametrize(
    ("megabytes", "name", "processes"), [(1, "a.txt", 0), (17, "a.txt", 4), (5, "a.txt.gz", 4)]
)
def test_only_large_data_are_worth_processes(
    tmp_path, monkeypatch, megabytes: int, name: str, processes: int
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(megabytes << 20)
    monkeypatch.setattr(prepare.os, "sched_getaffinity", lambda _: set(range(4)))
    sources = find_sources(str(tmp_path / name))[0].sources
    assert choose_num_proc(None, sources) == processes
    assert choose_num_proc(3, sources) == 3


# The ranks of a host.


def open_on_two_ranks(
    section: DataSection, tokenizer: PreTrainedTokenizerFast
) -> list[Opened | BaseException]:
    barrier = threading.Barrier(2, timeout=60)

    def run(local_rank: int) -> Opened | BaseException:
        try:
            return _open_shared(
                section,
                tokenizer,
                1,
                tell_nobody,
                NextToken,
                local_rank=local_rank,
                barrier=lambda: barrier.wait() and None,
            )
        except DataError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def test_other_ranks_open_what_local_rank_0_made(make_section, write_lines, tokenizer) -> None:
    one = write_lines("a.jsonl", [{"text": "one"}])
    two = write_lines("b.jsonl", [{"text": "two"}])
    results = open_on_two_ranks(make_section(train=one, eval=two), tokenizer)
    folders = [[store.folder for store in found.stores] for found in results]
    assert folders[0] == folders[1]
    assert len(set(folders[0])) == 2


def test_all_ranks_fail_with_the_same_words_and_a_repair_is_noticed(
    tmp_path, make_section, write_lines, tokenizer
) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    section = make_section(train=str(path), eval=str(other))
    one, two = open_on_two_ranks(section, tokenizer)
    assert isinstance(one, DataError)
    assert isinstance(two, DataError)
    assert str(one) == str(two)
    assert f"--data={path}: no such file" in str(one)
    assert f"--eval_data={other}: no such file" in str(one)
    write_lines("a.jsonl", [{"text": "one"}])
    write_lines("b.jsonl", [{"text": "two"}])
    assert all(isinstance(found, Opened) for found in open_on_two_ranks(section, tokenizer))
    path.unlink()
    assert all(isinstance(found, DataError) for found in open_on_two_ranks(section, tokenizer))
