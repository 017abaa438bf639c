"""Nothing in a file is executed, wherever it is given to bigft: 71 live payloads x 7 entries."""

import contextlib
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from making import make_model
from zero_files import write_zero_checkpoint

from bigft.checkpoint.consolidate import consolidate
from bigft.checkpoint.manifest import write_manifest
from bigft.checkpoint.state.index import read_index
from bigft.cli import parse
from bigft.commands.data import main as show_data
from bigft.data.store.store import StoreInfo, TokenStore
from bigft.errors import BigftError, CheckpointError, DataError
from bigft.evaluation.plain import load_plain
from bigft.files.torch_file import read_torch_file
from bigft.models.facts import read_facts
from bigft.models.load import load_model
from bigft.models.section import ModelSection

NAMES = sorted(hostile.make_payloads(Path("x")))


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Path]:
    """The payloads, each of which was seen to run in an ordinary unpickler, and their canary."""
    folder = tmp_path_factory.mktemp("hostile")
    canary = folder / "canary"
    payloads = hostile.make_payloads(canary)
    (folder / "files").mkdir()
    assert hostile.find_live(folder / "files", payloads, canary) == set(payloads)
    return payloads, canary


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model") / "model")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def payload(
    armed: tuple[dict[str, bytes], Path], request: pytest.FixtureRequest
) -> Iterator[bytes]:
    """One payload; afterwards nothing may have been created."""
    payloads, canary = armed
    yield payloads[request.param]
    assert list(canary.parent.glob("canary*")) == []


def make_checkpoint(folder: Path, pattern: str, content: bytes) -> Path:
    write_zero_checkpoint(folder, {"w": torch.ones(5)})
    next(folder.glob(pattern)).write_bytes(content)
    return folder


every_payload = pytest.mark.parametrize("payload", NAMES, indirect=True)


@every_payload
@pytest.mark.parametrize("container", hostile.CONTAINERS)
@pytest.mark.parametrize("pattern", ["*_rank_1_*model_states.pt", "*_rank_0_*optim_states.pt"])
def test_shards_of_a_stock_checkpoint(
    tmp_path: Path, payload: bytes, container: str, pattern: str
) -> None:
    content = hostile.CONTAINERS[container](payload)
    folder = make_checkpoint(tmp_path / "stock", pattern, content)
    with pytest.raises(CheckpointError, match=r"states\.pt: "):
        consolidate(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@every_payload
def test_shards_of_an_old_checkpoint_of_bigft(tmp_path: Path, payload: bytes) -> None:
    step = tmp_path / "run" / "checkpoints" / "step_00000005"
    make_checkpoint(step / "shards", "*_rank_0_*optim_states.pt", hostile.as_zip(payload))
    write_manifest(step, {"step": 5})
    with pytest.raises(CheckpointError, match=r"optim_states\.pt: "):
        consolidate(tmp_path / "run", tmp_path / "out")


@every_payload
def test_resume_reads_no_pickle(tmp_path: Path, payload: bytes) -> None:
    step = tmp_path / "checkpoints" / "step_00000005"
    make_checkpoint(step / "shards", "*_rank_0_*optim_states.pt", hostile.as_zip(payload))
    (step / "rng.pt").write_bytes(hostile.as_zip(payload))
    write_manifest(step, {"step": 5})
    # The first thing that a resume opens of a checkpoint's content.
    with pytest.raises(CheckpointError, match=r"index\.json: missing"):
        read_index(step)


@every_payload
def test_universal_checkpoint(tmp_path: Path, payload: bytes) -> None:
    folder = tmp_path / "global_step5_universal"
    zero = folder / "zero" / "model.embed_tokens.weight"
    zero.mkdir(parents=True)
    for name in ("fp32.pt", "exp_avg.pt"):
        (zero / name).write_bytes(hostile.as_zip(payload))
    (folder / "mp_rank_00_model_states.pt").write_bytes(hostile.as_zip(payload))
    (tmp_path / "latest_universal").write_text(folder.name)
    (tmp_path / "latest").write_text(folder.name)
    with pytest.raises(CheckpointError, match=r"states\.pt: "):
        consolidate(tmp_path, tmp_path / "out")


@every_payload
@pytest.mark.parametrize("container", hostile.CONTAINERS)
def test_weights_of_a_base_model(
    model: Path, tmp_path: Path, payload: bytes, container: str
) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    (tmp_path / "pytorch_model.bin").write_bytes(hostile.CONTAINERS[container](payload))
    with pytest.raises(CheckpointError, match="nothing in|damaged|cannot be"):
        load_plain(str(tmp_path), torch.device("cpu"))
    section = ModelSection(name=str(tmp_path))
    with pytest.raises(CheckpointError, match="nothing in|damaged|cannot be"):
        load_for_training(section)


def load_for_training(section: ModelSection) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bigft.engine.zero import Zero

    load_model(
        section,
        read_facts(section),
        Zero({"zero_optimization": {"stage": 0}}),
        auto_class=AutoModelForCausalLM,
        tokenizer=AutoTokenizer.from_pretrained(section.name),
        dtype=torch.float32,
        device=torch.device("cpu"),
        seed=0,
    )


@every_payload
@pytest.mark.parametrize("name", ["data.pt", "data.pkl", "data.jsonl", "data.parquet"])
def test_data_files(tmp_path: Path, payload: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(DataError):
        show_data(parse(["data", str(tmp_path / name)]))
    (tmp_path / name).write_bytes(hostile.as_zip(payload))
    with pytest.raises(DataError):
        show_data(parse(["data", str(tmp_path)]))


@every_payload
def test_arrays_of_the_token_cache(tmp_path: Path, payload: bytes) -> None:
    """The cache holds .npy files; one with Python objects in it is a pickle."""
    header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)  # type: ignore[arg-type]
    (tmp_path / "info.json").write_text(json.dumps({f.name: 0 for f in fields(StoreInfo)}))
    for name in ("tokens", "supervised", "offsets", "learned", "digests", "pieces"):
        (tmp_path / f"{name}.npy").write_bytes(content.getvalue() + payload)
    with pytest.raises(DataError, match="damaged .*Python objects"):
        TokenStore(tmp_path)


# --- bombs ---------------------------------------------------------------------------------------

_PROTOCOL = b"\x80\x02"


def _laughs(levels: int = 60) -> bytes:
    """Tuples of tuples: 2**levels leaves in a few hundred bytes."""
    body = b")q\x00"
    for level in range(levels):
        body += b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1])
    return body


def _model_state(stage: bytes) -> bytes:
    """An optimizer file whose `zero_stage` is something else than a number."""
    text = b"X\x14\x00\x00\x00optimizer_state_dict}X\x0a\x00\x00\x00zero_stage"
    return _PROTOCOL + b"}" + text + stage + b"ss."


def _many_int_keys() -> bytes:
    """Keys that all have the hash of 0."""
    prime = (1 << 61) - 1
    keys = (
        b"\x8a\x0c" + (prime * number).to_bytes(12, "little") + b"N" for number in range(1, 200_000)
    )
    return _PROTOCOL + b"}(" + b"".join(keys) + b"u."


def _copies(function: bytes) -> bytes:
    """One list of a million elements, copied a million times over."""
    return (
        _PROTOCOL + b"](" + b"N" * 1_000_000 + b"eq\x00" + function + b"q\x01"
        + b"h\x01h\x00\x85R" * 1_000_000 + b"."
    )  # fmt: skip


BOMBS: dict[str, Callable[[], bytes]] = {
    "memo": lambda: _PROTOCOL + b"]r\xff\xff\xff\xff0N.",
    "memo_text": lambda: _PROTOCOL + b"]p99999999999999999999\n0N.",
    "laughs_as_key": lambda: _PROTOCOL + b"}" + _laughs() + b"Ns.",
    "laughs_in_set": lambda: b"\x80\x04\x8f(" + _laughs() + b"\x90.",
    "laughs_in_frozenset": lambda: b"\x80\x04(" + _laughs() + b"\x91.",
    "laughs_as_text": lambda: _PROTOCOL + b"cbuiltins\nstr\n" + _laughs() + b"\x85R.",
    "laughs_as_stage": lambda: _model_state(_laughs()),
    "laughs_in_persistent_id": lambda: _PROTOCOL + _laughs() + b"Q.",
    "int_keys": _many_int_keys,
    "copied_list": lambda: _copies(b"cbuiltins\nlist\n"),
    "copied_order": lambda: _copies(b"ccollections\nOrderedDict\n"),
    "copied_size": lambda: _copies(b"ctorch\nSize\n"),
    "long_text": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "long_bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "long_bytearray": lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "long_number": lambda: b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.",
    "long_frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "long_decimal": lambda: b"L" + b"9" * 5_000_000 + b"L\n.",
    "bytearray_call": lambda: _PROTOCOL + b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R.",
    "nested_lists": lambda: _PROTOCOL + b"]" * 2_000_000 + b"a" * 1_999_999 + b".",
    "nested_marks": lambda: _PROTOCOL + b"(" * 5_000_000 + b".",
    "nested_calls": lambda: (
        _PROTOCOL
        + b"N"
        + b"ctorch._tensor\n_rebuild_from_type_v2\n" * 100_000
        + b"R" * 100_000
        + b"."
    ),  # fmt: skip
    "nothing": lambda: b"",
    "noise": lambda: np.random.default_rng(0).bytes(1 << 20),
}


def _deflated(name: str, size: int) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(name, "w", force_zip64=True) as stream:
            for _ in range(size >> 20):
                stream.write(bytes(1 << 20))
        if not name.endswith("data.pkl"):
            archive.writestr("archive/data.pkl", b"N.")
    return target.getvalue()


def _crowded() -> bytes:
    """A zip whose directory lists a million records."""
    entry = b"PK\x01\x02" + bytes(42)
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    return directory + end


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "deflated_pickle": lambda: _deflated("archive/data.pkl", 1 << 28),
    "deflated_byteorder": lambda: _deflated("archive/byteorder", 1 << 28),
    "crowded_directory": _crowded,
    "two_pickles": lambda: hostile.as_zip(b"N.").replace(b"byteorder", b"data.pkl\0"),
}

_MEASURED = """
import resource, sys, time
from pathlib import Path
from bigft.errors import CheckpointError
from bigft.checkpoint.consolidate import consolidate
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
try:
    consolidate(Path(sys.argv[1]), Path(sys.argv[2]))
except CheckpointError as error:
    assert len(str(error)) < 2000, len(str(error))
    text = str(error)
else:
    raise SystemExit("not refused")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(peak << 10, time.process_time() - started, text.encode("ascii", "replace").decode())
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [*BOMBS, *ARCHIVES])
def test_bombs_are_refused_in_little_time_and_memory(tmp_path: Path, name: str) -> None:
    content = hostile.as_zip(BOMBS[name]()) if name in BOMBS else ARCHIVES[name]()
    folder = make_checkpoint(tmp_path / "stock", "*_rank_0_*optim_states.pt", content)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(folder), str(tmp_path / "out")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=100,
        # 4 GB: a bomb ends the process and not the machine.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    peak, seconds, text = done.stdout.split(" ", 2)
    print(f"{name}: {int(peak) >> 20} MiB, {float(seconds):.2f} s, {text[-120:]}")
    # The largest of them has a structure of 8 MB; its values, 8 to 50 bytes per instruction.
    assert int(peak) < 700 << 20


def test_every_short_program_is_read_or_refused(tmp_path: Path) -> None:
    """All programs of one instruction, and random ones: only our own error comes out."""
    generator = np.random.default_rng(1)
    programs = [bytes([one]) + b"." for one in range(256)]
    programs += [generator.bytes(2) + b"." for _ in range(400)]
    alphabet = np.frombuffer(b"]}()NKt\x85\x86\x87ausebRq\x00h\x00\x88.0(2l\x8f\x90\x94", np.uint8)
    programs += [bytes(generator.choice(alphabet, 12)) + b"." for _ in range(400)]
    path = tmp_path / "a.pt"
    refused = 0
    for program in programs:
        path.write_bytes(hostile.as_zip(program))
        with contextlib.suppress(CheckpointError):
            read_torch_file(path)
            continue
        refused += 1
    assert 500 < refused < len(programs)


def test_what_torch_saves_is_still_read(tmp_path: Path) -> None:
    """The machine agrees with torch's own reader on ordinary files, of every protocol."""
    saved = {
        "text": "ä\ud7ff", "bytes": b"\0\xff", "numbers": [0, -1, 255, 256, 2**40, -(2**70), 1.5],
        "none": None, "flags": (True, False), "nested": {"a": [{"b": (1, (2, (3, 4, 5)))}]},
        "set": {1, 2}, "frozen": frozenset({3}), "empty": ((), [], {}), "w": torch.ones(2, 3),
    }  # fmt: skip
    for protocol in range(2, 6):
        torch.save(saved, tmp_path / "a.pt", pickle_protocol=protocol)
        read = read_torch_file(tmp_path / "a.pt")
        assert read.pop("w").shape == (2, 3)
        kept = {key: value for key, value in saved.items() if key != "w"}
        if protocol == 2:  # bytes are a call of _codecs.encode there
            kept.pop("bytes"), read.pop("bytes")
        assert read == kept
        assert json.dumps(read["nested"])
    for protocol in (0, 1):
        content = pickle.dumps({"a": [1, True, None, 1.5, "ü\n", (1, 2)]}, protocol)
        (tmp_path / "b.pt").write_bytes(hostile.as_zip(content))
        assert read_torch_file(tmp_path / "b.pt") == {"a": [1, True, None, 1.5, "ü\n", (1, 2)]}


def test_errors_are_bigfts_own() -> None:
    assert issubclass(CheckpointError, BigftError)
    assert issubclass(DataError, BigftError)
