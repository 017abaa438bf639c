import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigft.cli import parse
from bigft.commands.consolidate import main
from bigft.errors import CheckpointError, ConfigError


def run_consolidate(source: str, output_dir: str, **options: str) -> None:
    words = [f"--{name}={value}" for name, value in options.items()]
    main(parse(["consolidate", source, f"--output_dir={output_dir}", *words]))


def test_json_is_one_object_with_the_keys_of_the_contract(
    tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "shards", {"a": torch.ones(3, 3)})
    run_consolidate(str(tmp_path / "shards"), str(tmp_path / "out"), json="true")
    facts = json.loads(capsys.readouterr().out)
    contract = {"path", "parameters", "bytes", "seconds", "peak_rss_bytes", "verified"}
    assert set(facts) == {*contract, "reread", "source"}
    assert facts["reread"] is False
    assert facts["path"] == str(tmp_path / "out")
    assert facts["source"] == str(tmp_path / "shards")
    assert facts["parameters"] == 9
    assert facts["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert facts["peak_rss_bytes"] > 10**6
    assert facts["verified"] is True


def test_text_is_one_line_with_path_size_and_seconds(
    tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "shards", {"a": torch.ones(3, 3)})
    run_consolidate(str(tmp_path / "shards"), str(tmp_path / "out"), dtype="float32")
    line = capsys.readouterr().out
    path, size, seconds = line.rstrip("\n").split("  ")
    assert path == str(tmp_path / "out")
    assert size.endswith(" B")
    assert seconds.endswith("s")
    assert line.count("\n") == 1


def test_shard_size_is_respected(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> None:
    write_checkpoint(tmp_path / "shards", {name: torch.ones(1000) for name in "abc"})
    run_consolidate(str(tmp_path / "shards"), str(tmp_path / "out"), max_shard_size="4KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def test_all_wrong_values_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        main(parse(["consolidate", str(tmp_path), "--max_shard_size=much", f"--model={tmp_path}"]))
    text = str(caught.value)
    assert text.startswith("3 problems:")
    for word in ("--output_dir", "--max_shard_size much", "--model"):
        assert word in text
    with pytest.raises(ConfigError, match="int4"):
        main(parse(["consolidate", str(tmp_path), "--output_dir=x", "--dtype=int4"]))


def test_missing_folder_is_what_is_complained_about(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        main(parse(["consolidate", str(tmp_path / "gone")]))
    (tmp_path / "run" / "resolved").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no committed checkpoint"):
        main(parse(["consolidate", str(tmp_path / "run")]))
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "resolved"]


def test_empty_words_are_no_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output_dir: empty"):
        run_consolidate(str(tmp_path), "")
    with pytest.raises(ConfigError, match="RUN_OR_CHECKPOINT: empty"):
        run_consolidate("", str(tmp_path / "out"))


def test_shard_size_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        run_consolidate(str(tmp_path), str(tmp_path / "out"), max_shard_size="0")


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 3}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_stock_folder_with_a_model_of_its_own(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    write_checkpoint(tmp_path / "stock" / "global_step7", {"a": torch.ones(3, 3)})
    (tmp_path / "stock" / "latest").write_text("global_step7")
    folder = write_config(tmp_path / "hf")
    out = tmp_path / "out"
    for model in (folder, folder / "config.json"):
        words = ["--from", str(tmp_path / "stock"), "--model", str(model), "--verify"]
        main(parse(["consolidate", *words, "--output_dir", str(out)]))
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
        assert (out / "tokenizer.json").is_file() is (model == folder)


def test_config_of_a_hub_model_comes_from_its_cache(
    tmp_path: Path, write_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789012345678901234567890123456789"
    cache = tmp_path / "cache" / "models--org--name"
    write_config(cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    write_checkpoint(tmp_path / "stock", {"a": torch.ones(3, 3)})
    out = tmp_path / "out"
    run_consolidate(str(tmp_path / "stock"), str(out), model="org/name")
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 3
    assert (out / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "RUN_OR_CHECKPOINT: required"),
        (["a", "--from", "b"], "give one of them"),
        (["a", "--output_dir=x", "--model=builtin"], "--model builtin: has no files"),
        (["a", "--output_dir=x", "--model=org/gone"], "--model org/gone: no such folder"),
        (["a", "--output_dir=x", "--from"], "--from: a value must follow"),
    ],
)
def test_mistakes_are_answered(words: list[str], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        main(parse(["consolidate", *words]))


def test_bar_is_shown_on_a_terminal_alone(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    write_checkpoint(tmp_path / "shards", {"a": torch.ones(3, 3)})
    words = ["consolidate", str(tmp_path / "shards"), "--verify", "--output_dir"]
    command = [sys.executable, "-m", "bigft", *words]
    options = {"cwd": Path(__file__).parents[3], "stdout": subprocess.PIPE, "timeout": 120}
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    done = subprocess.run([*command, str(tmp_path / "a")], stderr=terminal, check=True, **options)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal whose other side is closed
        while part := os.read(master, 65536):
            shown += part
    os.close(master)
    assert b"writing" in shown
    assert b"verifying" in shown
    assert done.stdout.count(b"\n") == 1
    done = subprocess.run(
        [*command, str(tmp_path / "b")], stderr=subprocess.PIPE, check=True, **options
    )
    assert b"writing" not in done.stderr
