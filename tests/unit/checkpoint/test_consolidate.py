import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from zero_files import write_zero_checkpoint

from bigft.checkpoint import consolidate as module
from bigft.checkpoint.consolidate import consolidate
from bigft.checkpoint.manifest import read_manifest, write_manifest
from bigft.checkpoint.swap import unfinished_folder
from bigft.errors import CheckpointError, ConfigError

Weights = dict[str, torch.Tensor]
WriteCheckpoint = Callable[..., Path]

CONFIG = {
    "model_type": "llama",
    "dtype": "float32",
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "text_config": {"dtype": "float32"},
}


@pytest.fixture
def shards(tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights) -> Path:
    return write_checkpoint(tmp_path / "shards", weights)


def make_assets(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_text("old weights")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


def make_step(run: Path, step: int, write: WriteCheckpoint, weights: Weights) -> Path:
    step_dir = run / "checkpoints" / f"step_{step:08d}"
    write(step_dir / "shards", weights, model={"global_steps": step})
    make_assets(step_dir / "hf")
    facts = {"step": step, "world_size": 2, "zero_stage": 3, "model": "acme/tiny", "tokens": 12345}
    write_manifest(step_dir, facts)
    return step_dir


def names_beside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_values_equal_torchs_cast(
    tmp_path: Path, shards: Path, weights: Weights, dtype: str
) -> None:
    result = consolidate(shards, tmp_path / "out", dtype=dtype, threads=2)
    written = load_file(result.path / "model.safetensors")
    assert set(written) == set(weights)
    for name, value in weights.items():
        assert torch.equal(written[name], value.to(getattr(torch, dtype))), name
    assert result.parameters == sum(value.numel() for value in weights.values())
    assert result.bytes == (result.path / "model.safetensors").stat().st_size
    assert result.verified


def test_auto_takes_the_format_of_the_training(tmp_path: Path, shards: Path) -> None:
    result = consolidate(shards, tmp_path / "out")
    written = load_file(result.path / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


@pytest.mark.parametrize("is_direct", [True, False])
def test_blocks_cut_tensors_and_slices_anywhere(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    is_direct: bool,
) -> None:
    monkeypatch.setattr("bigft.checkpoint.stream.BLOCK_BYTES", 4096)
    monkeypatch.setattr("bigft.checkpoint.stream._READ_BYTES", 512)
    if not is_direct:
        monkeypatch.setattr("bigft.checkpoint.stream._DIRECT", 0)
    weights = {f"w{n}": torch.randn(n) for n in (1, 1023, 1024, 1025, 3, 7000, 5)}
    write_checkpoint(tmp_path / "shards", weights, world_size=3, num_groups=2)
    for dtype in (torch.float32, torch.bfloat16):
        out = tmp_path / str(dtype)
        result = consolidate(tmp_path / "shards", out, dtype=str(dtype)[6:], threads=3, verify=True)
        written = load_file(out / "model.safetensors")
        assert all(torch.equal(written[name], value.to(dtype)) for name, value in weights.items())
        assert result.reread


def test_file_system_without_direct_writes_is_written_all_the_same(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []
    real_open = os.open

    def open_(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            refused.append(path)
            raise OSError(22, "Invalid argument")
        return real_open(path, flags, *rest, **options)

    monkeypatch.setattr("bigft.checkpoint.stream.BLOCK_BYTES", 4096)
    monkeypatch.setattr(os, "open", open_)
    weights["large"] = torch.randn(5000)
    big = write_zero_checkpoint(tmp_path / "big", weights)
    consolidate(big, tmp_path / "out", dtype="float32", threads=1, verify=True)
    monkeypatch.setattr(os, "open", real_open)
    assert refused
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in weights.items())


def test_short_reads_and_writes_are_continued(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:5000], at))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: preadv(fd, [into[0][:7]], at))
    weights["large"] = torch.randn(7000)
    write_zero_checkpoint(tmp_path / "large", weights)
    consolidate(tmp_path / "large", tmp_path / "out", dtype="float32", verify=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in weights.items())


def test_shard_that_shrinks_while_it_is_read_is_named(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: 0)
    with pytest.raises(CheckpointError, match=r"_optim_states\.pt: ends at byte"):
        consolidate(shards, tmp_path / "out", dtype="float32")


def test_buffers_and_transposed_frozen_parameters(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights
) -> None:
    frozen = torch.randn(4, 3).bfloat16().t()
    ids = torch.tensor([2**40, 1])
    mask = torch.tensor([True, False, True])
    model = {
        "module": {"ids": ids, "mask": mask, "scale": torch.ones(2), "scratch": torch.ones(1)},
        "buffer_names": ["ids", "mask", "scale"],
        "frozen_param_shapes": {"frozen": frozen.shape},
        "frozen_param_fragments": {"frozen": frozen},
    }
    write_checkpoint(tmp_path / "shards", weights, stage=2, model=model)
    consolidate(tmp_path / "shards", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["frozen"], frozen)
    assert torch.equal(written["ids"], ids)
    assert torch.equal(written["mask"], mask)
    assert written["scale"].dtype == torch.bfloat16
    assert "scratch" not in written


@pytest.mark.parametrize("is_tied", [True, False])
def test_ties_are_written_once_unless_the_configuration_unties_them(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights, is_tied: bool
) -> None:
    write_checkpoint(tmp_path / "s", weights, model={"shared_params": {"head": "embed"}})
    assets = make_assets(tmp_path / "hf", tie_word_embeddings=is_tied)
    result = consolidate(tmp_path / "s", tmp_path / "out", dtype="float32", assets=assets)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert ("head" in written) is not is_tied
    assert torch.equal(written["embed" if is_tied else "head"], weights["embed"])
    assert result.parameters == sum(value.numel() for value in weights.values())


def test_newest_committed_checkpoint_of_a_run_is_taken(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights
) -> None:
    run = tmp_path / "run"
    make_step(run, 5, write_checkpoint, {**weights, "one": torch.tensor([5.0])})
    make_step(run, 10, write_checkpoint, {**weights, "one": torch.tensor([10.0])})
    damaged = make_step(run, 15, write_checkpoint, weights)
    (damaged / "hf" / "tokenizer.json").unlink()
    (run / "checkpoints" / "latest").write_text("step_00000015")
    for source in (run, run / "checkpoints", run / "checkpoints" / "step_00000010"):
        consolidate(source, tmp_path / "out")
        written = load_file(tmp_path / "out" / "model.safetensors")
        assert written["one"].item() == 10
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        consolidate(damaged, tmp_path / "out")


def test_export_into_a_checkpoint_is_refused(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights
) -> None:
    """Files that its manifest does not list would make it count as damaged."""
    step = make_step(tmp_path / "run", 5, write_checkpoint, weights)
    for place in (step / "model", step / "hf" / "model"):
        with pytest.raises(ConfigError, match="lies in the checkpoint step_00000005"):
            consolidate(step, place)
    assert read_manifest(step)["step"] == 5


def test_what_is_taken_instead_of_a_damaged_checkpoint_is_said(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    weights: Weights,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = make_step(tmp_path / "run", 5, write_checkpoint, weights)
    damaged = make_step(tmp_path / "run", 7, write_checkpoint, weights)
    os.truncate(damaged / "hf" / "tokenizer.json", 0)
    result = consolidate(tmp_path / "run", tmp_path / "out")
    assert result.source == whole / "shards"
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "tokenizer.json" in said[0]
    assert said[-1].endswith(str(whole))


def test_assets_and_model_card_come_along(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights
) -> None:
    make_step(tmp_path / "run", 10, write_checkpoint, weights)
    out = consolidate(tmp_path / "run", tmp_path / "out").path
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert config["text_config"] == {"dtype": "bfloat16"}
    assert config["model_type"] == "llama"
    assert names_beside(out) == {
        "README.md",
        "bigft_export.json",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    card = (out / "README.md").read_text()
    for fact in ("base_model: acme/tiny", "| Optimizer steps | 10 |", "12,345", "bfloat16"):
        assert fact in card


def test_stock_folder_is_found_by_its_latest_file(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "latest").write_text("shards")
    consolidate(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "only weights are written" in caplog.text
    # Without a config no class can be named: the card is written, and says nothing of one.
    assert "AutoModel" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("tag", ["../elsewhere", "gone", "..", ""])
def test_latest_file_may_only_name_a_folder_beside_it(tmp_path: Path, tag: str) -> None:
    stock = tmp_path / "stock"
    stock.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (stock / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match="latest: "):
        consolidate(stock, tmp_path / "out")


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_folder_without_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: no "):
        consolidate(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_value_that_is_not_finite_is_named_and_nothing_is_left(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights, bad: float
) -> None:
    weights["layer.weight"][2, 3] = bad
    write_checkpoint(tmp_path / "shards", weights)
    with pytest.raises(CheckpointError, match=r"layer\.weight has values that are not finite"):
        consolidate(tmp_path / "shards", tmp_path / "out")
    assert names_beside(tmp_path) == {"shards"}


def test_overflow_of_float16_says_what_to_do(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path / "shards", {"big": torch.tensor([1.0, 70_000.0])})
    with pytest.raises(CheckpointError, match="big .*export bfloat16"):
        consolidate(tmp_path / "shards", tmp_path / "out", dtype="float16")


def test_previous_export_is_replaced_and_other_folders_are_not(
    tmp_path: Path, shards: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    consolidate(shards, out, dtype="float32", max_shard_bytes=100)
    assert (out / "model.safetensors.index.json").is_file()
    consolidate(shards, out, dtype="bfloat16")
    assert names_beside(out) == {"README.md", "bigft_export.json", "model.safetensors"}
    assert names_beside(tmp_path) == {"shards", "out"}
    (out / "bigft_export.json").unlink()
    with pytest.raises(CheckpointError, match="not empty and not an earlier export"):
        consolidate(shards, out)
    assert (out / "model.safetensors").is_file()


def test_failed_export_keeps_the_previous_one(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights
) -> None:
    write_checkpoint(tmp_path / "good", weights)
    weights["one"][0] = float("nan")
    write_checkpoint(tmp_path / "bad", weights)
    consolidate(tmp_path / "good", tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError):
        consolidate(tmp_path / "bad", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert names_beside(tmp_path) == {"good", "bad", "out"}


def test_replacing_works_without_renameat2(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consolidate(shards, tmp_path / "out", dtype="float32")
    monkeypatch.setattr("bigft.checkpoint.swap._exchange", lambda one, other: False)
    consolidate(shards, tmp_path / "out", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "bigft_export.json").read_text())["dtype"] == "bfloat16"
    assert names_beside(tmp_path) == {"shards", "out"}


def test_export_that_a_killed_process_was_replacing_is_cleared_or_comes_back(
    tmp_path: Path, shards: Path
) -> None:
    out, previous = tmp_path / "out", tmp_path / "out.partial-previous-4711"
    consolidate(shards, previous, dtype="float32")
    # Killed between the two renames of a file system that cannot exchange names.
    with unfinished_folder(out):
        assert (out / "model.safetensors").is_file()
    assert names_beside(tmp_path) == {"shards", "out"}
    # Killed while it removed what it had replaced.
    consolidate(shards, previous)
    consolidate(shards, out)
    assert names_beside(tmp_path) == {"shards", "out"}


def test_output_that_cannot_be_written_is_a_setting(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ConfigError, match="choose another output folder"):
            consolidate(shards, out)
    assert (tmp_path / "file").is_file()


def _drop_capabilities() -> None:
    """Root, too, is held by permissions from here on; in this thread alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    # _LINUX_CAPABILITY_VERSION_3, of the calling thread; then three sets of 64 bits, all empty.
    if libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def test_read_only_parent_is_a_setting(tmp_path: Path, shards: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with ThreadPoolExecutor(1, initializer=_drop_capabilities) as thread:
        export = thread.submit(consolidate, shards, closed / "out")
        with pytest.raises(ConfigError, match="closed cannot be written"):
            export.result()
    assert list(closed.iterdir()) == []


def test_too_little_space_is_noticed_before_writing(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="1000 B free, the export needs"):
        consolidate(shards, tmp_path / "out")


def test_disk_that_fills_up_is_explained(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        consolidate(shards, tmp_path / "out")
    assert names_beside(tmp_path) == {"shards"}


def test_check_of_the_result_notices_a_changed_header(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors = module.write_tensors

    def write_and_damage(*arguments: Any, **options: Any) -> Any:
        digests = write_tensors(*arguments, **options)
        path = arguments[2] / "model.safetensors"
        path.write_bytes(path.read_bytes().replace(b'"layer.bias"', b'"layer.bios"'))
        return digests

    monkeypatch.setattr(module, "write_tensors", write_and_damage)
    with pytest.raises(CheckpointError) as caught:
        consolidate(shards, tmp_path / "out")
    assert "layer.bias is missing" in str(caught.value)
    assert "layer.bios" in str(caught.value)


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_verify_notices_one_flipped_bit_in_the_finished_file(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    position: int,
) -> None:
    write_checkpoint(tmp_path / "shards", {"w": torch.randn(10_000)})
    reread = module.reread

    def flip_and_reread(*arguments: Any, **options: Any) -> None:
        path = arguments[1] / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)
        reread(*arguments, **options)

    monkeypatch.setattr(module, "reread", flip_and_reread)
    with pytest.raises(CheckpointError, match="are not what was written"):
        consolidate(tmp_path / "shards", tmp_path / "out", verify=True)
    assert names_beside(tmp_path) == {"shards"}


def test_progress_adds_up_to_the_files(tmp_path: Path, shards: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = consolidate(
        shards, tmp_path / "out", verify=True, progress=lambda *words: told.append(words)
    )
    for what in ("writing", "verifying"):
        assert sum(done for kind, done, _ in told if kind == what) == result.bytes
    assert {total for _, _, total in told} == {result.bytes}


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
from bigft.checkpoint import stream
from bigft.cli import main

# A shell that starts its commands in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
stream.BLOCK_BYTES = 4096
write = stream._Writer._write
def write_slowly(self, name, part, position, flags):
    write(self, name, part, position, flags)
    if position >= 40_960:
        os.write(1, b"busy\\n")
        time.sleep(0.5)
stream._Writer._write = write_slowly
main(["consolidate", sys.argv[1], "--output_dir", sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("number", "code", "left"), [(2, 130, {"large"}), (9, -9, {"large", "out.partial"})]
)
def test_interrupted_export_leaves_no_name_and_the_next_one_succeeds(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, number: int, code: int, left: set[str]
) -> None:
    weights = {"w": torch.randn(100_000)}
    write_checkpoint(tmp_path / "large", weights)
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "large"), str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"busy\n"
    with pytest.raises(CheckpointError, match="another process is writing there"):
        consolidate(tmp_path / "large", tmp_path / "out")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert b"Traceback" not in errors
    assert names_beside(tmp_path) == left
    consolidate(tmp_path / "large", tmp_path / "out", dtype="float32")
    assert names_beside(tmp_path) == {"large", "out"}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["w"], weights["w"])


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_files_have_the_permissions_of_the_users_umask(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, weights: Weights, mask: int
) -> None:
    make_step(tmp_path / "run", 10, write_checkpoint, weights)
    before = os.umask(mask)
    try:
        out = consolidate(tmp_path / "run", tmp_path / "out", max_shard_bytes=100).path
    finally:
        os.umask(before)
    assert len(names_beside(out)) > 6
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask
    for path in out.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == wanted, path


def test_configuration_of_another_model_is_refused(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    names = ("model.embed_tokens.weight", *(f"model.layers.{i}.w" for i in range(2)))
    source = write_checkpoint(tmp_path / "shards", {name: torch.ones(12, 4) for name in names})
    right = {"vocab_size": 12, "hidden_size": 4, "num_hidden_layers": 2}
    for number, (wrong, words) in enumerate(
        [
            ({"vocab_size": 1000}, "has 12 rows, its vocab_size is 1,000"),
            ({"text_config": {**right, "hidden_size": 8}}, "has 4 columns"),
            ({"num_hidden_layers": 3}, "2 layers are here, its num_hidden_layers is 3"),
        ]
    ):
        facts = wrong if "text_config" in wrong else {**right, **wrong}
        assets = make_assets(tmp_path / f"other-{number}", **facts)
        with pytest.raises(ConfigError, match=words):
            consolidate(source, tmp_path / "out", assets=assets)
        assert not (tmp_path / "out").exists()
    for number, fitting in enumerate([right, {"text_config": right}, {}]):
        assets = make_assets(tmp_path / f"fitting-{number}", **fitting)
        consolidate(source, tmp_path / "out", assets=assets)


def test_config_without_config_json_is_refused(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "hf").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        consolidate(shards, tmp_path / "out", assets=tmp_path / "hf")


def test_memory_does_not_grow_with_the_model(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    weights = {f"layer.{number}": torch.ones(5000, 2000) for number in range(10)}
    write_checkpoint(tmp_path / "large", weights)
    write_checkpoint(tmp_path / "small", {"layer.0": torch.ones(2)})
    del weights
    code = (
        "import sys; from pathlib import Path\n"
        "from bigft.checkpoint.consolidate import consolidate\n"
        "out = consolidate(Path(sys.argv[1]), Path(sys.argv[1] + '.out'), threads=2)\n"
        "print(out.peak_rss_bytes, out.bytes)\n"
    )
    peaks = {}
    for name in ("small", "large"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name], size = map(int, done.stdout.split())
    assert size > 200_000_000
    # Two threads, a block of 8 MiB and 1 MiB of what is cast each.
    assert peaks["large"] - peaks["small"] < 32 << 20
