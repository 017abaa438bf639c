"""GGUF files, by llama.cpp's own converter."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bigft.errors import CheckpointError, ConfigError

VARIABLE = "BIGFT_LLAMA_CPP"
FILE_NAME = "model.gguf"

_SCRIPT = "convert_hf_to_gguf.py"


def find_converter(environ: Mapping[str, str]) -> Path:
    """Find llama.cpp's converter.

    Raises:
        ConfigError: The environment does not say where it is, or says something wrong.
    """
    folder = environ.get(VARIABLE, "")
    if not folder:
        raise ConfigError(
            f"--gguf: needs llama.cpp's sources; get them and set {VARIABLE} to their folder, the"
            f" one with {_SCRIPT}"
        )
    if not (Path(folder) / _SCRIPT).is_file():
        raise ConfigError(f"{VARIABLE}={folder}: no {_SCRIPT} there; give llama.cpp's own folder")
    return Path(folder) / _SCRIPT


def convert(converter: Path, model: Path, folder: Path, kind: str) -> None:
    """Let the converter write `model.gguf`.

    Args:
        converter: The script.
        model: Folder of the model.
        folder: Where the file goes.
        kind: Number format, as the script's `--outtype`.

    Raises:
        CheckpointError: It failed; its last words are told.
    """
    command = [sys.executable, str(converter), str(model)]
    command += ["--outfile", str(folder / FILE_NAME), "--outtype", kind]
    # Its `gguf` may be newer than the one of the registry.
    paths = [str(converter.parent / "gguf-py"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode or not (folder / FILE_NAME).is_file():
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["no words"]
        raise CheckpointError(
            f"{model}: llama.cpp's converter failed ({words[-1].strip()}); it may not know the"
            " architecture or the tokenizer: take a newer llama.cpp"
        )
