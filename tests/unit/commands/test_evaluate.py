"""`bigft evaluate`: what is accepted, and which model is which."""

import json
import sys

import pytest

from bigft.cli import main, parse
from bigft.commands.evaluate import _order_models


@pytest.mark.parametrize(
    ("words", "order"),
    [
        ("--compare A B", ("A", "B")),
        ("--compare=A B --data F", ("A", "B")),
        ("--data F --compare A B", ("A", "B")),
        ("A --compare B", ("A", "B")),
        ("--data F A --compare=B", ("A", "B")),
        ("A --data F --compare B --json", ("A", "B")),
    ],
)
def test_models_are_in_the_order_they_are_typed_in(words, order):
    request = parse(["evaluate", *words.split()])
    assert _order_models(request, request.settings["compare"]) == order


def _refuse(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *map(str, words)])
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    return caught.value.code, err


def test_one_model_cannot_be_compared(capsys):
    code, err = _refuse(capsys, "--compare", "A")
    assert (code, "MODEL: required" in err) == (2, True)


def test_packed_rows_have_no_losses_of_their_own(capsys):
    code, err = _refuse(capsys, "--compare", "A", "B", "--packing", "best_fit")
    assert code == 2
    assert "--packing best_fit: --compare needs the loss of every example" in err


def test_options_that_would_do_nothing_are_refused(capsys):
    code, err = _refuse(capsys, "A", "--max_seconds", 3, "--max_examples", 5)
    assert code == 2
    assert "--max_examples, --max_seconds: about written answers" in err


def test_metrics_of_texts_are_for_models_that_write(capsys, shared_folder):
    words = ("--task", "classification", "--metrics", "bleu,f1")
    code, err = _refuse(capsys, shared_folder / "model", *words)
    assert code == 2
    assert "--metrics bleu,f1: for models that write text, and this one does classification" in err


def test_a_missing_package_is_said_before_anything_is_loaded(capsys, shared_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    code, err = _refuse(capsys, shared_folder / "model", "--metrics", "chrf")
    assert code == 2
    assert 'pip install "bigft[eval]"' in err


def test_data_without_answers_are_refused(capsys, shared_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "texts.jsonl").write_text('{"text": "some words"}\n')
    words = ("--data", tmp_path / "texts.jsonl", "--metrics", "f1", "--max_length", 64)
    code, err = _refuse(capsys, shared_folder / "model", *words)
    assert code == 3
    assert "no row can be answered: one text without an answer" in err


def test_models_of_different_tasks_are_not_compared(capsys, shared_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from making import make_tokenizer
    from task_rows import t5_config
    from transformers import T5ForConditionalGeneration

    T5ForConditionalGeneration(t5_config()).save_pretrained(tmp_path / "t5")
    make_tokenizer(tmp_path / "t5")
    data = ("--data", shared_folder / "chat.jsonl", "--max_length", 64)
    code, err = _refuse(capsys, "--compare", shared_folder / "model", tmp_path / "t5", *data)
    assert code == 2
    assert "does causal_lm and" in err


def test_rows_are_read_by_the_columns_that_were_named(capsys, shared_folder, tmp_path):
    rows = [{"ask": "red cat", "reply": "blue dog"}, {"ask": "one", "reply": "two three"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("evaluate", shared_folder / "model", "--data", tmp_path / "rows.jsonl", "--json")
    columns = ("--data.columns.prompt", "ask", "--data.columns.completion", "reply")
    cache = ("--data.loading.cache_dir", tmp_path / "cache")
    main([*map(str, (*words, *columns, *cache))])
    assert json.loads(capsys.readouterr().out)["rows"] == 2


def test_settings_that_choose_rows_are_refused(capsys):
    words = ("A", "--data.eval_fraction", 0.5, "--data.clean.empty", "drop", "--data.formt", "x")
    code, err = _refuse(capsys, *words)
    assert code == 2
    assert "--data.eval_fraction: a model is scored on all rows of --data as they are" in err
    assert "--data.clean.empty: a model is scored" in err
    assert "--data.formt" in err
