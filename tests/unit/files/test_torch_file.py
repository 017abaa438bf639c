import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigft.errors import CheckpointError
from bigft.files.torch_file import Inert, TensorRef, read_torch_file


def read_values(ref: TensorRef) -> np.ndarray:
    flat = np.fromfile(ref.path, np.float32, ref.numel, offset=ref.offset)
    return flat.reshape(ref.shape)


def write_pickle(path: Path, payload: bytes) -> Path:
    """A file that looks like torch's, with a pickle of our own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/data/0", b"\0" * 64)
    return path


class Payload:
    """Pickles as a call, as an attacker's object would."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def test_tensors_are_found_at_their_bytes(tmp_path: Path) -> None:
    base = torch.randn(40)
    saved = {
        "a": torch.randn(3, 5),
        "nested": [base[7:19].view(3, 4), torch.nn.Parameter(torch.randn(2))],
        "size": torch.Size([3, 4]),
        "order": OrderedDict(x=1),
    }
    path = tmp_path / "a.pt"
    torch.save(saved, path)
    read = read_torch_file(path)
    assert np.array_equal(read_values(read["a"]), saved["a"].numpy())
    assert np.array_equal(read_values(read["nested"][0]), base[7:19].view(3, 4).numpy())
    assert np.array_equal(read_values(read["nested"][1]), saved["nested"][1].detach().numpy())
    assert read["size"] == (3, 4)
    assert read["order"] == {"x": 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64", "bool", "uint8"])
def test_dtype_and_bytes_of_every_format(tmp_path: Path, dtype: str) -> None:
    tensor = torch.arange(6).to(getattr(torch, dtype))
    torch.save(tensor, tmp_path / "a.pt")
    ref = read_torch_file(tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()[ref.offset : ref.offset + 6 * tensor.itemsize]
    assert ref.dtype == dtype
    assert raw == tensor.view(torch.uint8).numpy().tobytes()


def test_transposed_tensor_is_not_contiguous(tmp_path: Path) -> None:
    torch.save([torch.randn(3, 4).t(), torch.randn(3, 1, 4)], tmp_path / "a.pt")
    transposed, plain = read_torch_file(tmp_path / "a.pt")
    assert not transposed.is_contiguous
    assert transposed.strides == (1, 4)
    assert plain.is_contiguous


def test_objects_of_other_packages_become_inert(tmp_path: Path) -> None:
    payload = b"cdeepspeed.runtime.zero.config\nZeroStageEnum\n(I3\ntR."
    read = read_torch_file(write_pickle(tmp_path / "a.pt", payload))
    assert isinstance(read, Inert)
    assert read.args == (3,)
    assert read.source == "deepspeed.runtime.zero.config.ZeroStageEnum"


ENUM = b"cdeepspeed.runtime.zero.config\nZeroStageEnum\n"
GETATTR = b"c__builtin__\ngetattr\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("disabled", 0), ("optimizer_states", 1), ("gradients", 2), ("weights", 3)],
)
def test_members_of_an_enum_as_early_python_3_11_writes_them(tmp_path, name, value):
    payload = GETATTR + b"(" + ENUM + b"V" + name.encode() + b"\ntR."
    read = read_torch_file(write_pickle(tmp_path / "a.pt", payload))
    assert isinstance(read, Inert)
    assert (read.source, read.args) == ("deepspeed.runtime.zero.config.ZeroStageEnum", (value,))


def test_the_members_are_those_of_deepspeed():
    from deepspeed.runtime.zero.config import ZeroStageEnum

    from bigft.files.torch_file import _ENUMS

    (members,) = _ENUMS.values()
    assert members == {m.name: m.value for m in ZeroStageEnum}


@pytest.mark.parametrize(
    "payload",
    [
        GETATTR + b".",
        GETATTR + b"(" + ENUM + b"V__class__\ntR.",
        GETATTR + b"(" + ENUM + b"V__init_subclass__\ntR.",
        GETATTR + b"(" + ENUM + b"I1\ntR.",
        GETATTR + b"(" + ENUM + b"tR.",
        GETATTR + b"(" + ENUM + b"Vweights\nNtR.",
        GETATTR + b"(cdeepspeed.runtime.engine\nDeepSpeedEngine\nVweights\ntR.",
        GETATTR + b"(ccollections\nOrderedDict\nVfromkeys\ntR.",
        GETATTR + b"(VZeroStageEnum\nVweights\ntR.",
        # A member that is called, and one that is taken before another getattr stays behind.
        b"(" + GETATTR + b"(" + ENUM + b"Vweights\ntR" + GETATTR + b"t.",
    ],
)
def test_any_other_getattr_is_refused(tmp_path, payload):
    with pytest.raises(CheckpointError, match=r"asks for builtins\.getattr"):
        read_torch_file(write_pickle(tmp_path / "evil.pt", payload))


def test_rng_states_do_not_hinder_reading(tmp_path: Path) -> None:
    saved = {"numpy": np.random.default_rng(0).bit_generator.state, "array": np.arange(3), "x": 5}
    torch.save(saved, tmp_path / "a.pt")
    assert read_torch_file(tmp_path / "a.pt")["x"] == 5


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("importlib", "import_module"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("numpy", "load"),
        ("runpy", "run_path"),
        ("collections", "OrderedDict.__init__"),
    ],
)
def test_functions_are_refused_by_name(tmp_path: Path, module: str, name: str) -> None:
    payload = f"\x80\x04\x8c{chr(len(module))}{module}\x8c{chr(len(name))}{name}\x93."
    path = write_pickle(tmp_path / "evil.pt", payload.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"evil\.pt: asks for") as caught:
        read_torch_file(path)
    assert f"{module}.{name}" in str(caught.value)


def test_payload_does_not_run(tmp_path: Path) -> None:
    import os

    canary = tmp_path / "canary"
    payload = pickle.dumps({"module": Payload(os.system, f"touch {canary}")}, protocol=2)
    pickle.loads(payload)
    assert canary.exists(), "the payload would run in an ordinary unpickler"
    canary.unlink()
    with pytest.raises(CheckpointError, match="asks for posix.system"):
        read_torch_file(write_pickle(tmp_path / "evil.pt", payload))
    assert not canary.exists()


def test_tensor_cannot_be_redirected_to_another_file(tmp_path: Path) -> None:
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89}tR"
    )
    read = read_torch_file(write_pickle(tmp_path / "plain.pt", b"\x80\x02" + tensor + b"."))
    assert read.shape == (2,)
    build = b"}X\x04\x00\x00\x00pathX\x0b\x00\x00\x00/etc/passwdsb."
    with pytest.raises(CheckpointError, match=r"evil\.pt: damaged"):
        read_torch_file(write_pickle(tmp_path / "evil.pt", b"\x80\x02" + tensor + build))


def test_tensor_beyond_its_record_is_refused(tmp_path: Path) -> None:
    payload = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
        b"FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x11\x85K\x01\x85"
        b"\x89}tR."
    )
    with pytest.raises(CheckpointError, match="longer than its record"):
        read_torch_file(write_pickle(tmp_path / "a.pt", payload))


def test_every_truncation_is_refused_and_names_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(100)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            read_torch_file(path)


def test_flipped_byte_in_the_structure_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flipped.pt"
    torch.save({"a": torch.randn(100)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"FloatStorage") + 2] ^= 0x20
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"flipped\.pt: damaged"):
        read_torch_file(path)


def test_file_without_zip_is_refused(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old\.pt: damaged or not a torch checkpoint"):
        read_torch_file(tmp_path / "old.pt")


def test_compressed_record_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1000), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as source,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_torch_file(tmp_path / "b.pt")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such file"):
        read_torch_file(tmp_path / "gone.pt")
