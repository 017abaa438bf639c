"""Write a model folder whose weights are made from another's, one file at a time."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bigft import __version__
from bigft.checkpoint.assets import copy_assets
from bigft.checkpoint.files import sync
from bigft.checkpoint.swap import MARKER_NAME
from bigft.compression.source import Source
from bigft.redact import redact_text

Change = Callable[[str, Tensor], Mapping[str, Tensor]]
"""Name and weight -> what is written instead, by name; nothing leaves the weight out."""

_INDEX = "model.safetensors.index.json"


def write_weights(source: Source, folder: Path, change: Change) -> None:
    """Write every file of the source again, with its weights changed.

    Memory: three times the largest of the files.
    """
    index: dict[str, str] = {}
    total = 0
    for path in source.files:
        changed: dict[str, Tensor] = {}
        with safe_open(path, framework="pt") as file:
            # In their order in the file: it is read from its begin to its end.
            for name in file.keys():  # noqa: SIM118
                changed.update(change(name, file.get_tensor(name)))
        if not changed:
            continue  # All of it was in layers that are gone.
        save_file(changed, folder / path.name, metadata={"format": "pt"})
        sync(folder / path.name)
        index |= dict.fromkeys(changed, path.name)
        total += sum(tensor.nbytes for tensor in changed.values())
    if len(source.files) > 1:
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / _INDEX).write_text(f"{text}\n", encoding="utf-8")


def write_rest(source: Source, folder: Path, config: dict[str, Any], what: str) -> None:
    """Write configuration, tokenizer and the mark of a folder that bigft made."""
    copy_assets(source.folder, folder, "auto")
    text = json.dumps(config, indent=2)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
    if (source.folder / "README.md").is_file():
        shutil.copyfile(source.folder / "README.md", folder / "README.md")
    marker = {"bigft": __version__, "source": str(source.folder.resolve()), "compressed": what}
    (folder / MARKER_NAME).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def extend_card(folder: Path, rows: Mapping[str, str], note: str) -> None:
    """Say in README.md what was done and what came of it."""
    card = folder / "README.md"
    before = (
        card.read_text(encoding="utf-8")
        if card.is_file()
        else "---\nlibrary_name: transformers\ntags:\n- bigft\n---\n"
    )
    table = ["| | |", "|---|---|", *(f"| {label} | {text} |" for label, text in rows.items())]
    lines = [before.rstrip("\n"), "", "## Compressed with bigft", "", note, "", *table, ""]
    card.write_text(redact_text("\n".join(lines)), encoding="utf-8")


def sync_tree(folder: Path) -> None:
    """Put every file and its name on disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
