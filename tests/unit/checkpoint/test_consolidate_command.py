import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigft.cli import parse
from bigft.commands.consolidate import main
from bigft.errors import ConfigError


def run_consolidate(source: str, output_dir: str, **options: str) -> None:
    words = [f"--{name}={value}" for name, value in options.items()]
    main(parse(["consolidate", source, f"--output_dir={output_dir}", *words]))


def test_json_is_one_object_with_the_keys_of_the_contract(
    tmp_path: Path, write_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "shards", {"a": torch.ones(3, 3)})
    run_consolidate(str(tmp_path / "shards"), str(tmp_path / "out"), json="true")
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {"path", "parameters", "bytes", "seconds", "peak_rss_bytes", "verified"}
    assert facts["path"] == str(tmp_path / "out")
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


def test_shard_size_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        run_consolidate(str(tmp_path), str(tmp_path / "out"), max_shard_size="0")
