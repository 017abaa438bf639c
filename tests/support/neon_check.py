"""The native step for 64-bit ARM, in an emulator, against the reference.

python neon_check.py FOLDER
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from native_parts import compare

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
struct Header {
  int64_t parts, groups, bytes, threads;
  int32_t weights, gradients, isa;
  float scale;
};
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
                                     h.weights, h.gradients, h.scale, h.threads, h.isa);
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
        self,
        parts: Any,
        groups: Any,
        *,
        weights: str,
        gradients: str,
        scale: float,
        threads: int,
        isa: str,
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
        header = np.zeros(1, "i8,i8,i8,i8,i4,i4,i4,f4")
        kinds = (binding.WEIGHTS[weights], binding.GRADIENTS[gradients], binding.ISAS[isa])
        header[0] = (len(parts), len(groups), len(memory), threads, *kinds, scale)
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
    for seed in range(TRIALS):
        kind = list(binding.WEIGHTS)[seed % 3]
        gradients = ["float32", "bfloat16"][seed // 3 % 2]
        isa = "neon" if seed % 4 else "scalar"
        compare(emulated, seed, kind, gradients, isa, steps=2)
    print(f"{TRIALS} of {TRIALS} equal")


if __name__ == "__main__":
    main()
