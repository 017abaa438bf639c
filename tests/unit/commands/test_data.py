"""`bigft data`: what it prints, for people and for programs, and how it refuses."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from making import make_tokenizer

from bigft.cli import main, parse
from bigft.commands.data import mark
from bigft.config.options import COMMANDS
from bigft.data.preview import ExamplePreview
from bigft.run.preview import resolve_preview

ROOT = Path(__file__).resolve().parents[3]

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32}


def turn(question: str, answer: str) -> str:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return json.dumps({"messages": messages})


RUNS = "runs " * 30 + "near"

ROWS = [
    turn("one two three", "red green blue"),
    turn("a cat", RUNS),
    turn("one two three", "red green blue"),
    "not json",
    turn("the dog sleeps", "far and near"),
    json.dumps({"messages": [{"role": "user", "content": "but"}]}),
    turn("eats", "bird \u001b[2J bird"),
]

GOLDEN = """\
format        chat
read          7 records
rejected      1 bad, 1 with no token to learn
              mine.jsonl:4: not JSON (Expecting value at character 1): 'not json'
              mine.jsonl:6: no token to learn
rows          5
tokens        160
supervised    52 tokens, 32.5%
overlong      0 above 64 tokens
duplicates    1 equal row, 0 rows left out
cleaning      none
split         3 train, 2 eval, 0 test
packing       best_fit: 2 sequences of 64 tokens, 84.4% full

source  files  rows  tokens  supervised  epoch tokens  epoch share
mine        1     5     160          52           108       100.0%

tokens per row: 26 to 53, median 27, mean 32.0
  25 - 28  4  ########################################
  29 - 32  0
  33 - 36  0
  37 - 40  0
  41 - 44  0
  45 - 48  0
  49 - 52  0
  53 - 56  1  ##########

--- example 1 of 2: mine, 53 tokens, 32 supervised
<|im_start|>user
a cat<|im_end|>
<|im_start|>assistant
⟦{runs}<|im_end|>⟧


--- example 2 of 2: mine, 27 tokens, 4 supervised
<|im_start|>user
the dog sleeps<|im_end|>
<|im_start|>assistant
⟦far and near<|im_end|>⟧


tokens that count in the loss are shown ⟦like this⟧
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without weights, a tokenizer, and seven rows."""
    folder = tmp_path_factory.mktemp("preview")
    make_tokenizer(folder / "model")
    (folder / "model/config.json").write_text(json.dumps(CONFIG))
    (folder / "mine.jsonl").write_text("".join(row + "\n" for row in ROWS))
    return folder


@pytest.fixture
def show(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command on the seven rows and return what it prints."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.chdir(folder)

    def run(*words: str, rows: str = "mine.jsonl") -> str:
        lenient = ["--data.on_bad_row", "skip", "--data.eval_fraction", "0.3"]
        main(["data", rows, "--model", "model", "--max_length", "64", *lenient, *words])
        return capsys.readouterr().out

    return run


def refusal(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    return int(caught.value.code or 0), capsys.readouterr().err


def test_the_page_is_the_golden_one(show):
    assert show("--examples", "2") == GOLDEN.format(runs=RUNS)


def test_json_is_one_object_with_the_keys_of_the_contract(show):
    found = json.loads(show("--json"))
    contract = {
        "format": "chat",
        "rows": 5,
        "rejected_rows": 2,
        "tokens": 160,
        "supervised_tokens": 52,
        "truncated_rows": 0,
        "packing_utilisation": 108 / 128,
    }
    assert {key: found[key] for key in contract} == contract
    assert sum(rows for _, _, rows in found["lengths"]["histogram"]) == found["rows"]
    assert [row["origin"] for row in found["rejected"]] == ["mine.jsonl:4", "mine.jsonl:6"]
    (source,) = found["sources"]
    assert (source["name"], source["files"], source["rows"]) == ("mine", ["mine.jsonl"], 5)
    example = found["examples"][1]
    assert [example["text"][a:b] for a, b in example["spans"]] == ["far and near<|im_end|>"]


def test_settings_of_the_data_change_what_is_shown(show):
    found = json.loads(show("--json", "--data.train_on", "all", "--packing", "none"))
    # Everything but the first token of each of six rows: the silent one counts now, too.
    assert found["supervised_tokens"] == found["tokens"] - 6
    assert found["train_sequences"] == found["train_rows"]


def test_weights_are_shown_as_shares_of_an_epoch(show, folder):
    (folder / "b.txt").write_text("one two three four " * 10)
    found = json.loads(show("--json", rows="mine.jsonl:1,b.txt:3"))
    first, second = found["sources"]
    assert (first["name"], first["weight"], second["name"]) == ("mine", 1.0, "b")
    assert first["epoch_share"] + second["epoch_share"] == pytest.approx(1)
    assert second["epoch_share"] > 0.5
    page = show(rows="mine.jsonl:1,b.txt:3")
    assert "mine:1" in page
    assert "--- example 2 of 3: b, 64 tokens" in page


def test_a_recipe_of_a_whole_run_is_read_and_its_cleaning_counted(show, folder):
    recipe = folder / "run.yaml"
    recipe.write_text(
        "learning_rate: 1e-4\nmax_length: 9\ndata:\n  clean:\n    duplicates: drop_exact\n"
        "    keep_pattern: red|far\n    strip: true\n"
    )
    found = json.loads(show("--json", "--recipe", str(recipe)))
    assert found["touched"]["dropped_by_keep_pattern"] == 3
    assert (found["rows"], found["dropped_duplicates"], found["max_length"]) == (3, 1, 64)
    assert "3 dropped by keep pattern" in show("--recipe", str(recipe))


def test_separate_evaluation_data_are_a_source_of_their_own(show, folder):
    (folder / "held.jsonl").write_text(ROWS[0] + "\n")
    found = json.loads(show("--json", "--eval_data", "held.jsonl"))
    assert [source["setting"] for source in found["sources"]] == ["data", "eval_data"]
    assert (found["rows"], found["train_rows"], found["eval_rows"]) == (6, 5, 1)
    assert "held (evaluation)" in show("--eval_data", "held.jsonl")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "is_colored"), [("", True), ("1", False)])
def test_a_terminal_gets_colors_unless_they_are_unwanted(show, monkeypatch, no_color, is_colored):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("NO_COLOR", no_color)
    show()
    page = screen.getvalue()
    assert ("\x1b[30;42mfar and near<|im_end|>\x1b[0m" in page) == is_colored
    assert ("⟦far and near<|im_end|>⟧" in page) == (not is_colored)


def test_control_characters_of_the_data_do_not_reach_the_terminal(show):
    page = show()
    assert "⟦bird \\x1b[2J bird<|im_end|>⟧" in page
    assert "\x1b" not in page


def test_colors_end_with_each_line_and_long_stretches_lose_their_middle():
    text = "q\n" + "a\nb" + "." * 5000
    example = ExamplePreview("s", text, ((2, len(text)),), 9, 8)
    assert mark(example, colored=True).startswith("q\n\x1b[30;42ma↵\x1b[0m\n\x1b[30;42mb..")
    assert "[... 4,403 characters ...]" in mark(example, colored=False)


def test_a_missing_file_is_an_error_of_the_data(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code, said = refusal(["mine.json", "--model", "model"], capsys, monkeypatch)
    assert code == 3
    assert "mine.json" in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ["--max_lenght", "9"],
            "--max_lenght: no such setting; bigft calls the nearest one --max_length",
        ),
        (["--data.train_on", "asistant"], "did you mean assistant?"),
        (["--learning_rate", "1"], "--learning_rate: `bigft data` does not take it"),
        (["--ds.bf16.enabled", "true"], "--ds.bf16.enabled: `bigft data` does not take it"),
        (["--config", "a.json"], "--config: `bigft data` does not take it"),
        (["--data", "b.jsonl"], "given twice: mine.jsonl and --data"),
        (["--data.loading.streaming"], "the preview reads all rows"),
        (["--model", "model", "--data.clean.drop_pattern", "("], "drop_pattern"),
        (["--data.format", "chats"], "--data.format chats: no such format; did you mean chat?"),
        (["--data.clean.augment.delete", "0.1"], "--data.clean.augment.copies is 0"),
        (["--data.columns", "ask"], "--data.columns=ask: has to be a mapping"),
        (["--model", "nowhere/at/all"], "--model nowhere/at/all"),
        (["--examples", "-1"], "--examples"),
    ],
)
def test_wrong_settings_are_answered(words, answer, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code, said = refusal(["mine.jsonl", *words], capsys, monkeypatch)
    assert code == 2
    assert answer in said


def test_too_many_rows_with_nothing_to_learn_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_tokenizer(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "a.jsonl").write_text("".join(ROWS[n] + "\n" for n in (0, 5, 5)))
    monkeypatch.chdir(tmp_path)
    code, said = refusal(["a.jsonl", "--model", "model"], capsys, monkeypatch)
    assert code == 3
    assert "a.jsonl:2, a.jsonl:3" in said


def test_the_data_may_come_from_the_flag_the_recipe_or_nowhere(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: r.jsonl\n")
    lines = {
        ("data",): "builtin",
        ("data", "--data", "b.jsonl"): "b.jsonl",
        ("data", "--recipe", str(recipe)): "r.jsonl",
        ("data", "a.jsonl", "--recipe", str(recipe)): "a.jsonl",
    }
    found = {line: resolve_preview(parse(line)).data.train for line in lines}
    assert found == lines


def test_help_lists_the_settings_of_the_data_with_their_defaults(capsys):
    main(["data", "--help"])
    page = capsys.readouterr().out
    for piece in ("[FILE]", "--examples", "--json", "--data.clean.augment.copies", "default 1024"):
        assert piece in page
    assert "--learning_rate" not in page
    assert "--config" not in page
    assert not COMMANDS["data"].takes_config


def test_the_program_prints_json(folder):
    words = ["data", "mine.jsonl", "--model", "model", "--data.on_bad_row", "skip", "--json"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    environ.pop("RANK", None)
    done = subprocess.run(
        [sys.executable, "-m", "bigft", *words],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 5
