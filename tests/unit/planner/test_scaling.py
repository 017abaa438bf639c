"""The table over numbers of hosts: which numbers, what must hold of its rows, and how it reads."""

import json
import time

import pytest

from bigft.cli import main
from bigft.planner.scaling import parse_hosts
from tests.unit.commands.test_plan import plan

QWEN = {
    **{"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288},
    **{"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False},
}
ALL = "1,2,4,...,1024"


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def words(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    hardware = ["--gpus", "8xH100", "--network", "400Gb", "--config", "ds_configs/zero3.json"]
    return ["--model", str(tmp_path), *hardware]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        ("1,2,6", [1, 2, 6]),
        ("1,2,4,...,64", [1, 2, 4, 8, 16, 32, 64]),
        ("3, ..., 24", [3, 6, 12, 24]),
        ("1,…,4", [1, 2, 4]),
        ("1,...,8,100", [1, 2, 4, 8, 100]),
    ],
)
def test_numbers_of_hosts(text, numbers):
    assert parse_hosts(text) == numbers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0", "no number from 1"),
        ("-1", "no number from 1"),
        ("two", "no number from 1"),
        ("1,,2", "no number from 1"),
        ("70000", "no number from 1"),
        ("²", "no number from 1"),
        ("2,1", "not above 2"),
        ("2,2", "not above 2"),
        ("1,...,6", "does not come to 6"),
        ("2,4,6,...,16", "not doubled"),
        ("...,4", "between two numbers"),
        ("1,...,...,4", "between two numbers"),
        ("1,...", "nothing stands behind"),
        (",".join(map(str, range(1, 99))), "at most 64"),
    ],
)
def test_what_is_no_list_of_hosts_is_said(text, why):
    with pytest.raises(ValueError, match=why):
        parse_hosts(text)


def test_the_table(capsys, words):
    page = plan(capsys, *words, "--hosts", ALL)
    lines = page.splitlines()
    rows = [line for line in lines if line.split()[1:2] and line.split()[0].isdigit()]
    assert [int(row.split()[0]) for row in rows] == [2**n for n in range(11)]
    assert "100%" in rows[0]
    for part in ("what this rests on", "50.0 GB/s", "given", "rings", "not in it", "efficiency"):
        assert part in page
    assert max(map(len, lines)) <= 150


@pytest.mark.parametrize("config", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_what_must_hold_from_row_to_row(capsys, words, config):
    words = [*words[:-1], f"ds_configs/{config}.json"]
    rows = json.loads(plan(capsys, *words, "--hosts", ALL, "--json"))["rows"]
    assert rows[0]["efficiency"] == pytest.approx(1.0)
    for fewer, more in zip(rows, rows[1:], strict=False):
        assert more["sequences_per_step"] == 2 * fewer["sequences_per_step"]
        assert more["device_bytes_per_rank"] <= fewer["device_bytes_per_rank"]
        assert more["sent_bytes_per_step"] >= fewer["sent_bytes_per_step"]
        assert more["network_seconds"] > fewer["network_seconds"]
        # At most twice as fast, and each host has half of the optimizer's work.
        assert more["tokens_per_second"] <= 4 * fewer["tokens_per_second"]
        seconds = rows[0]["tokens_per_second"] * rows[0]["seconds_for_tokens"]
        assert more["tokens_per_second"] * more["seconds_for_tokens"] == pytest.approx(seconds)


def test_a_row_is_the_plan_of_so_many_hosts(capsys, words):
    rows = json.loads(plan(capsys, *words, "--hosts", "1,4,16", "--json"))["rows"]
    for row in rows:
        alone = json.loads(plan(capsys, *words, "--hosts", str(row["hosts"]), "--json"))
        for key in ("seconds_per_step", "device_bytes_per_rank", "sent_bytes_per_step"):
            assert row[key] == pytest.approx(alone[key])


def test_the_sequences_of_a_step_can_stay(capsys, words):
    more = ["--hosts", "1,2,3,4,64", "--scale", "global_batch"]
    more += ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "8"]
    rows = json.loads(plan(capsys, *words, *more, "--json"))["rows"]
    assert [row.get("sequences_per_step") for row in rows] == [256, 256, None, 256, None]
    assert [row.get("accumulation") for row in rows] == [8, 4, None, 2, None]
    assert "256 sequences of a step cannot be divided among 24 ranks; 16 can" in rows[2]["refusal"]
    assert "among 512 ranks; 256 can" in rows[4]["refusal"]
    page = plan(capsys, *words, *more)
    assert "256 sequences of a step cannot be divided among 24 ranks; 16 can" in page
    assert "stay those of the first row" in page


def test_the_whole_table_takes_less_than_a_second(capsys, words):
    plan(capsys, *words, "--hosts", "1")
    start = time.process_time()
    plan(capsys, *words, "--hosts", ALL)
    assert time.process_time() - start < 1.0


def test_auto_chooses_for_the_fewest_hosts_that_do(capsys, tmp_path, words):
    words = [*words[:-2], "--hosts", "1,2,4", "--gpus", "2x24GB", "--host_memory", "48GB"]
    words = [word for word in words if word != "8xH100"]
    words.remove("--gpus")
    page = plan(capsys, *words)
    assert page.count("--config auto") == 3
    assert "DOES NOT FIT" not in page.splitlines()[-20:]


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["--hosts", "1,...,6"], "--hosts 1,...,6: doubling 1 does not come to 6"),
        (["--hosts", "1,2", "--tokens", "lots"], "--tokens lots"),
        (["--hosts", "1,2", "--scale", "none"], "--scale"),
    ],
)
def test_wrong_words_are_answered(capsys, words, more, answer):
    with pytest.raises(SystemExit) as caught:
        main(["plan", *words, *more])
    assert caught.value.code == 2
    assert answer in capsys.readouterr().err


def test_a_slow_network_brings_advice_that_is_planned(capsys, words):
    words = [*words, "--hosts", "2", "--gradient_accumulation_steps", "4"]
    words[words.index("400Gb")] = "25Gb"
    found = json.loads(plan(capsys, *words, "--json"))
    advice = found["network_advice"]
    flags = " ".join(one["flags"] for one in advice)
    assert "zero_hpz_partition_size=8" in flags
    for one in advice:
        assert one["seconds_per_step"] < found["seconds_per_step"]
        again = json.loads(plan(capsys, *words, *one["flags"].split(), "--json"))
        assert again["seconds_per_step"] == pytest.approx(one["seconds_per_step"], rel=0.02)
        assert again["device_bytes_per_rank"] == pytest.approx(one["device_bytes_per_rank"])
    alone = json.loads(plan(capsys, *words[:-4], "--json"))
    assert alone["network_advice"] == []
