"""The weights of a rank's file without the optimizer's states."""

import torch
from safetensors.torch import load_file, save_file

from bigft.checkpoint.slim import SlimFile, measure_slim
from bigft.files.safetensors_header import read_header


def test_weights_are_there_bit_for_bit_and_nothing_else(tmp_path):
    tensors = {
        "master/a": torch.randn(300),
        "exp_avg/a": torch.randn(300),
        "exp_avg_sq/a": torch.randn(300),
        "upper/b": torch.randn(7).bfloat16(),
        "rest/b": torch.arange(7, dtype=torch.int16),
        "scale1/b": torch.randn(1),
        "weight/c": torch.zeros(0),
        "shadow/a": torch.randn(300),
        "buffer/d": torch.randn(5),
        "absmax1/@0": torch.randn(9),
    }
    starts = dict.fromkeys(tensors, 0)
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    metadata = {"format": "bigft-state-1", "starts": str(starts).replace("'", '"'), "flats": "[]"}
    save_file(tensors, path, metadata)
    file, data = SlimFile(path), bytearray()
    piece = memoryview(bytearray(11))
    while count := file.readinto(piece):
        data += piece[:count]
    file.close()
    out.write_bytes(data)
    assert len(data) == measure_slim(path)
    kept = {k for k in tensors if not k.startswith(("exp_avg", "scale1", "absmax1"))}
    found = load_file(out)
    assert set(found) == kept
    assert all(torch.equal(found[key], tensors[key]) for key in kept)
    assert set(read_header(out).metadata) == {"format", "starts"}
