"""The native step for 64-bit ARM, in an emulator, against the reference.

python neon_check.py FOLDER
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from native_parts import (
    assert_same_bits,
    copy_pieces,
    draw_layout,
    from_bf16,
    make_pieces,
    step_native,
    step_reference,
    to_bf16,
)

from bigft.optim.native import binding
from bigft.optim.native.build import SOURCES, build

COMPILER = "aarch64-linux-gnu-g++"
TRIALS = 24

# A program that reads a call from a file, makes it, and writes all of its memory back.
_PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include "adamw.h"
struct Header { int64_t parts, groups, bytes; int32_t weights, gradients, isa; float scale; };
int main(int count, char **words) {
  std::FILE *in = std::fopen(words[1], "rb");
  Header h; BigftCode codes[2];
  if (count != 3 || !in || std::fread(&h, sizeof h, 1, in) != 1) return 2;
  std::vector<BigftPart> parts(h.parts); std::vector<BigftGroup> groups(h.groups);
  char *memory = static_cast<char *>(std::aligned_alloc(64, (h.bytes + 63) / 64 * 64));
  if (std::fread(codes, sizeof codes, 1, in) != 1) return 3;
  if (std::fread(parts.data(), sizeof(BigftPart), h.parts, in) != size_t(h.parts)) return 4;
  if (std::fread(groups.data(), sizeof(BigftGroup), h.groups, in) != size_t(h.groups)) return 5;
  if (std::fread(memory, 1, h.bytes, in) != size_t(h.bytes)) return 6;
  for (BigftPart &part : parts)
    for (void **p : {(void **)&part.weights, (void **)&part.rest, (void **)&part.copy,
                     (void **)&part.gradients, (void **)&part.moment1, (void **)&part.moment2,
                     (void **)&part.scale1, (void **)&part.scale2})
      if (*p) *p = memory + (reinterpret_cast<intptr_t>(*p) - 64);
  int64_t dropped = bigft_adamw_step(parts.data(), h.parts, groups.data(), &codes[0], &codes[1],
                                     h.weights, h.gradients, h.scale, 2, h.isa);
  std::FILE *out = std::fopen(words[2], "wb");
  std::fwrite(&dropped, sizeof dropped, 1, out);
  std::fwrite(memory, 1, h.bytes, out);
  return std::fclose(out);
}
"""

_POINTERS = (
    "weights", "rest", "copy", "gradients", "moment1", "moment2", "scale1", "scale2",
)  # fmt: skip


class Emulated:
    """Stands in for `Native`: carries the memory of a call over and back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        build(folder / binding.NAME, compiler=COMPILER, machine="aarch64")
        (folder / "main.cpp").write_text(_PROGRAM)
        words = [COMPILER, "-std=c++17", "-O1", f"-I{SOURCES}", "main.cpp", binding.NAME]
        subprocess.run([*words, "-Wl,-rpath,.", "-fopenmp", "-o", "main"], cwd=folder, check=True)

    def step(
        self, parts: Any, groups: Any, *, weights: str, gradients: str, scale: float, isa: str
    ) -> int:
        sizes = {"weights": 4 if weights == "fp32" else 2, "rest": 1 if weights == "split_8" else 2}
        sizes |= {"copy": 2, "gradients": 4 if gradients == "float32" else 2}
        memory, places, moved = bytearray(), [], parts.copy()
        for row, target in zip(parts, moved, strict=True):
            blocks = -(-(int(row["size"]) + int(row["phase"])) // 256)
            for name in _POINTERS:
                if not row[name]:
                    continue
                size = int(row["size"]) * sizes.get(name, 1 if row["scale1"] else 4)
                size = blocks * 4 if name.startswith("scale") else size
                target[name] = len(memory) + 64
                places.append((int(row[name]), len(memory), size))
                memory += bytes(_view(int(row[name]), size)) + bytes(-size % 64)
        header = np.zeros(1, "i8,i8,i8,i4,i4,i4,f4")
        kinds = (binding.WEIGHTS[weights], binding.GRADIENTS[gradients], binding.ISAS[isa])
        header[0] = (len(parts), len(groups), len(memory), *kinds, scale)
        codes = b"".join(map(bytes, self.codes))
        content = header.tobytes() + codes + moved.tobytes() + groups.tobytes() + bytes(memory)
        (self._folder / "in").write_bytes(content)
        emulator = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]
        subprocess.run([*emulator, "./main", "in", "out"], cwd=self._folder, check=True)
        result = (self._folder / "out").read_bytes()
        for address, start, size in places:
            _view(address, size)[:] = np.frombuffer(result, np.uint8)[8 + start : 8 + start + size]
        return int(np.frombuffer(result[:8], np.int64)[0])

    codes = binding._pack(binding.signed_code()), binding._pack(binding.unsigned_code())


def _view(address: int, size: int) -> Any:
    import ctypes

    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def main() -> None:
    emulated: Any = Emulated(Path(sys.argv[1]))
    from bigft.optim.reference import Rates

    equal = 0
    for seed in range(TRIALS):
        rng = np.random.default_rng(seed)
        kind = list(binding.WEIGHTS)[seed % 3]
        gradients = ["float32", "bfloat16"][seed // 3 % 2]
        isa = "neon" if seed % 4 else "scalar"
        ours = make_pieces(rng, *draw_layout(rng))
        if kind == "split_8":
            for piece in ours:
                piece.weights[:] = from_bf16(to_bf16(piece.weights))
        expected = copy_pieces(ours)
        for step in (1, 2):
            rates = [
                Rates(1e-3, (0.9, 0.999), 1e-8, 0.01, step),
                Rates(1e-4, (0.8, 0.9), 1e-6, 0.0, step),
            ]
            for piece, other in zip(ours, expected, strict=True):
                if gradients == "bfloat16":
                    other.gradients = from_bf16(to_bf16(piece.gradients))
            step_native(emulated, ours, rates, 0.5, kind, gradients, isa=isa)
            step_reference(expected, rates, 0.5, {"split_16": 16, "split_8": 8}.get(kind, 0))
            assert_same_bits(ours, expected)
        equal += 1
    print(f"{equal} of {TRIALS} equal")


if __name__ == "__main__":
    main()
