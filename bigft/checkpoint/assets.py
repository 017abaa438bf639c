"""What a Hugging Face folder has besides weights: configuration, tokenizer, model card."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigft.errors import CheckpointError, ConfigError
from bigft.redact import redact_text
from bigft.units import format_count

# Weights and what describes them is written by us; a copied index would name missing files.
_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
_LEFT_OUT = ("*.index.json", "bigft_export.json", "trainer_state.json", "manifest.json")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_TEMPLATE_FOLDER = "additional_chat_templates"


def copy_assets(assets: Path, folder: Path, dtype: str) -> list[str]:
    """Copy configuration, tokenizer and chat templates; `config.json` gets the export's dtype.

    Args:
        assets: A folder, or a configuration alone.
        folder: Where to.
        dtype: Format of the export.

    Returns:
        The names of the copied files.

    Raises:
        CheckpointError: `config.json` is missing or no JSON object.
    """
    config = read_config(assets)
    copied = []
    for path in _find_assets(assets):
        target = folder / path.relative_to(assets)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        copied.append(str(path.relative_to(assets)))
    _set_dtype(config, dtype, is_top=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return copied


def read_config(assets: Path) -> dict[str, Any]:
    """Read `config.json` of a folder of assets, or the file itself.

    Raises:
        CheckpointError: The file is missing or no JSON object.
    """
    path = assets if assets.is_file() else assets / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a model needs it. Give a folder that has one with --model"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: damaged: no JSON object")
    return config


def check_config(assets: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a configuration that somebody named can be that of these weights.

    Sizes of the embedding and the number of layers are compared, where the configuration and the
    names tell; transformers would fail on the result, or fill what is missing with random numbers.

    Args:
        assets: A folder, or a configuration alone.
        shapes: Name -> shape of everything that is exported.

    Raises:
        ConfigError: It belongs to another model.
    """
    numbers = list(_find_numbers(read_config(assets)))
    rows = {value for key, value in numbers if key.endswith("vocab_size")}
    layers = [value for key, value in numbers if key == "num_hidden_layers"]
    found = [int(match[1]) + 1 for name in shapes if (match := _LAYER.search(name))]
    problems = []
    for name, shape in shapes.items():
        if not (rows and name.endswith(_EMBEDDINGS) and len(shape) == 2):
            continue
        if shape[0] not in rows:
            wanted = " or ".join(f"{size:,}" for size in sorted(rows))
            problems.append(f"{name} has {shape[0]:,} rows, its vocab_size is {wanted}")
        if shape[1] not in {value for _, value in numbers}:
            problems.append(f"{name} has {shape[1]:,} columns, a size that it does not have")
    if found and layers and max(found) < min(layers):
        problems.append(f"{max(found)} layers are here, its num_hidden_layers is {min(layers)}")
    if problems:
        raise ConfigError(
            f"--model {assets}: belongs to another model than the checkpoint"
            f" ({'; '.join(problems)}); give the one that was trained"
        )


def _find_numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _find_numbers(value)
        elif type(value) is int:
            yield key, value


def write_model_card(folder: Path, facts: dict[str, Any], dtype: str, num_parameters: int) -> None:
    """Write README.md from what the checkpoint's manifest tells: `model`, `step`, `tokens`."""
    base = str(facts.get("model") or "")
    header = ["---", "library_name: transformers", "tags:", "- bigft"]
    # Hugging Face rejects a card whose base_model is no repository's name, such as a local path.
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith("builtin/")
    if is_repository and not Path(base).exists():
        header.append(f"base_model: {base}")
    rows = [("Base model", f"`{base}`" if base else "not recorded")]
    rows += [(label, text) for label, text in _describe(facts)]
    rows += [("Parameters", f"{num_parameters:,} ({format_count(num_parameters)})")]
    rows += [("Number format", dtype)]
    table = ["| | |", "|---|---|", *(f"| {label} | {text} |" for label, text in rows)]
    lines = [*header, "---", "", f"# {_make_title(base)}", "", _INTRODUCTION, "", *table, ""]
    # A stock checkpoint has none: its export is weights alone, and no class can be named.
    if (folder / "config.json").is_file():
        lines.append(_USAGE.replace("AutoModelForCausalLM", _find_auto_class(folder)))
    card = redact_text("\n".join(lines))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _find_auto_class(folder: Path) -> str:
    """Name the class of transformers that loads the model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (architecture, *_) = config.get("architectures") or [""]
    if architecture.endswith("Model"):
        return "AutoModel"
    for kind in ("ForSequenceClassification", "ForMaskedLM"):
        if architecture.endswith(kind):
            return f"AutoModel{kind}"
    return f"AutoModelFor{'Seq2SeqLM' if config.get('is_encoder_decoder') else 'CausalLM'}"


def _make_title(base: str) -> str:
    name = base.rstrip("/").rpartition("/")[2]
    return f"{name}, fine-tuned" if name else "A fine-tuned model"


def _describe(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if facts.get("heads"):
        yield "Heads, each a whole model", facts["heads"]
    if facts.get("step") is not None:
        yield "Optimizer steps", f"{facts['step']:,}"
    if facts.get("tokens") is not None:
        yield "Training tokens", f"{facts['tokens']:,}"
    if facts.get("ema"):
        yield "Weights", f"moving average over the steps, decay {facts['ema']:g}"
    if facts.get("inner_steps"):
        yield "Meta-learning", f"Reptile, {facts['inner_steps']} steps on each task"
    if facts.get("eval_loss") is not None:
        yield "Evaluation loss", f"{facts['eval_loss']:.4f}"
    if facts.get("zero_stage") is not None:
        yield "ZeRO stage", f"{facts['zero_stage']}"


def _find_assets(assets: Path) -> Iterator[Path]:
    if assets.is_file():
        return
    for path in sorted(assets.iterdir()):
        wanted = any(path.match(pattern) for pattern in _PATTERNS)
        if path.is_file() and wanted and not any(path.match(pattern) for pattern in _LEFT_OUT):
            yield path
    if (assets / _TEMPLATE_FOLDER).is_dir():
        yield from sorted((assets / _TEMPLATE_FOLDER).glob("*.jinja"))


def _set_dtype(config: dict[str, Any], dtype: str, *, is_top: bool) -> None:
    """Name the export's format here and in nested configurations that name one."""
    if is_top or "dtype" in config:
        config["dtype"] = dtype
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    for key, value in config.items():
        if key.endswith("_config") and key != "quantization_config" and isinstance(value, dict):
            _set_dtype(value, dtype, is_top=False)


_INTRODUCTION = "Full-parameter fine-tuning with bigft (DeepSpeed ZeRO)."
_USAGE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
```
"""
