"""Which model it is, by its content: the same on every machine and under every name."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_BLOCK = 4 << 20
_FILES_AT_ONCE = 8


def compute_model_digest(config: Mapping[str, Any], weight_files: Sequence[Path]) -> str:
    """Compute a digest of a model's configuration and all bytes of its weights.

    Reads the files: about 1 GB/s and core.
    """
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=16)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for found in pool.map(_digest_file, sorted(weight_files)):
            digest.update(found)
    return digest.hexdigest()


def _digest_file(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()
