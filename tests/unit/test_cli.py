"""The command line: what Fire must not decide, exit codes, help, and the real programs."""

import errno
import io
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import bigft
from bigft.cli import main, parse
from bigft.config.options import COMMANDS
from bigft.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


def program(*words, cwd=ROOT, **environ):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def refusal(*words):
    with pytest.raises(ConfigError) as caught:
        parse(words)
    return str(caught.value)


@pytest.fixture
def commands(monkeypatch):
    """Replace every command by one that keeps its request."""
    requests = []
    for name in COMMANDS:
        module = types.ModuleType(f"bigft.commands.{name}")
        module.main = requests.append
        monkeypatch.setitem(sys.modules, f"bigft.commands.{name}", module)
    monkeypatch.delenv("RANK", raising=False)
    return requests


def test_text_stays_text():
    request = parse(["train", "--model", "7e3", "--model.revision=1234e56", "--data", "a,b=c"])
    assert request.settings == {"model": "7e3", "model.revision": "1234e56", "data": "a,b=c"}


def test_config_recipe_and_words_are_told_apart():
    request = parse(["train", "--config", "a.json", "--recipe=b.yaml", "--seed", "-1"])
    assert (request.config, request.recipe) == ("a.json", "b.yaml")
    assert request.settings == {"seed": "-1"}
    assert parse(["explain", "seed", "--max_length", "9"]).words == ("seed",)


def test_bare_switches_are_true_and_do_not_swallow_words():
    assert parse(["train", "--dry_run", "--seed", "1"]).settings["dry_run"] == "true"
    request = parse(["consolidate", "--json", "RUN", "--output_dir", "out"])
    assert (request.words, request.settings["json"]) == (("RUN",), "true")
    assert parse(["train", "--dry_run", "false"]).settings["dry_run"] == "false"
    assert parse(["train", "--model.trust_remote_code"]).settings == {
        "model.trust_remote_code": "true"
    }


def test_dashes_inside_names_are_underscores():
    assert parse(["train", "--max-length", "9"]).settings == {"max_length": "9"}


@pytest.mark.parametrize(
    "words",
    [
        ["--local_rank=3", "train", "--seed", "1"],
        ["train", "--seed", "1", "--local_rank", "3"],
        ["train", "--local-rank=3", "--seed", "1"],
        ["--local-rank", "3", "train", "--seed", "1"],
    ],
)
def test_local_rank_of_the_launcher_is_dropped_anywhere(commands, words):
    main(words)
    assert commands[0].settings == {"seed": "1"}


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["train", "--seed", "1", "--seed=2"], ["given twice: --seed=1 and --seed=2"]),
        (["train", "--optim", "a", "--optim.name", "b"], ["--optim=a and --optim.name=b"]),
        (["train", "stray", "--seed"], ["stray: nothing", "--seed: a value must follow"]),
        (["train", "-s", "1"], ["-s: flags are written --name value"]),
        (["train", "--", "--interactive"], ["--: flags are written"]),
        (["trian"], ["did you mean train?"]),
        (["frobnicate"], ["choose one of train, launch, plan, data"]),
        ([], ["no command"]),
        (["train", "--dryrun"], ["a value must follow", "did you mean --dry_run?"]),
        (["evaluate"], ["MODEL: required"]),
        (["generate", "a", "b"], ["b: nothing was expected"]),
        (["launch", "--hostfile", "h", "train", "--seed", "1"], ["`bigft launch -- train ...`"]),
        (["launch", "stray"], ["stray: nothing was expected"]),
    ],
)
def test_usage_mistakes_are_answered(words, answers):
    text = refusal(*words)
    assert all(answer in text for answer in answers)


def test_a_command_gets_its_request(commands):
    main(["evaluate", "model", "--batch_size", "4"])
    (request,) = commands
    assert (request.command, request.words) == ("evaluate", ("model",))
    assert request.argv == ("evaluate", "model", "--batch_size", "4")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("empty"), 3, "bigft: empty\n"),
        (ConfigError("wrong"), 2, "bigft: wrong\n"),
        (KeyboardInterrupt(), 130, "bigft: interrupted\n"),
    ],
)
def test_errors_become_exit_codes(commands, monkeypatch, capsys, error, code, said):
    def fail(request):
        raise error

    monkeypatch.setattr(sys.modules["bigft.commands.train"], "main", fail)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for rank, text in (("0", said), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("LOCAL_SIZE", "2")
        with pytest.raises(SystemExit) as caught:
            main(["train"])
        assert caught.value.code == code
        assert capsys.readouterr().err == text


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_exit_code_needs_nobody_who_reads(commands, monkeypatch):
    def fail(request):
        raise DataError("empty")

    monkeypatch.setattr(sys.modules["bigft.commands.train"], "main", fail)
    monkeypatch.setattr(sys, "stderr", FullDisk())
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 3


def test_bugs_keep_their_traceback(commands, monkeypatch):
    def fail(request):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["bigft.commands.train"], "main", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


def test_nothing_is_answered_too(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("bigft: no command; choose one of train, ")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_overview_is_our_own(capsys, words):
    main(words)
    assert "usage: bigft COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["train", "--help"], ["--local_rank=0", "train", "-h"]])
def test_command_help_is_made_from_the_sections(capsys, words):
    main(words)
    page = capsys.readouterr().out
    assert "Everyday settings:" in page
    assert "Peak learning rate" in page


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"bigft {bigft.__version__}\n"


def test_explain_prints_meaning_value_and_origin(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    main(["explain", "learning_rate", "--config", "ds_configs/zero3.json", "--learning_rate", "1"])
    page = capsys.readouterr().out
    for piece in ("Peak learning rate", "default  1e-05", "value    1", "flag --learning_rate"):
        assert piece in page


def test_explain_knows_deepspeed_paths_and_sections(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    main(["explain", "ds.zero_optimization.stage", "--config", "ds_configs/zero2.json"])
    assert "value    2" in capsys.readouterr().out
    main(["explain", "trainer"])
    assert "trainer.seed" in capsys.readouterr().out
    main(["explain", "--config", "ds_configs/zero2.json"])
    page = capsys.readouterr().out
    assert "ds.zero_optimization.reduce_bucket_size" in page
    assert "optim.weight_decay" in page


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("lr", "--learning_rate"),
        ("optim.weight_decy", "optim.weight_decay"),
        ("ds.zero_optimization.stag", "did you mean ds.zero_optimization.stage?"),
    ],
)
def test_explain_answers_unknown_names(capsys, monkeypatch, name, answer):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["explain", name])
    assert caught.value.code == 2
    assert answer in capsys.readouterr().err


def test_module_refuses_a_wrong_flag_without_traceback():
    done = program("-m", "bigft", "train", "--config", "ds_configs/zero3.json", "--lr", "1")
    assert done.returncode == 2
    assert done.stderr == "bigft: --lr: no such setting; bigft calls this --learning_rate\n"


def test_other_ranks_leave_silently():
    done = program("-m", "bigft", "trian", RANK="1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_launch_script_works_from_any_folder(tmp_path):
    config = str(ROOT / "ds_configs/zero3.json")
    script = str(ROOT / "launch_scripts/run.py")
    done = program(script, "--local_rank=0", "--config", config, "--sed", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "bigft calls the nearest one --seed" in done.stderr
