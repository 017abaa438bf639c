"""What a model's `config.json` says, read without torch and before any weight.

The settings need the hidden size (DeepSpeed's "auto" bucket sizes), whether weights exist (the
default learning rate) and the longest sequence. All of it is in a small JSON file, so a wrong
model name is answered in milliseconds instead of after the ranks have started.
"""

import json
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bigft.config.hints import suggest_file
from bigft.errors import BigftError, CheckpointError, ConfigError
from bigft.files.paths import find_escape
from bigft.models.overrides import read_number
from bigft.models.section import ModelSection

BUILTIN_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "hidden_act": "silu",
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
}
"""The built-in model: 6.9M parameters, Llama-style, random weights.

Wide and shallow: it learns faster per token than 6 layers of 256, and a step has fewer gathers
(docs/log.md, 2026-11-22).
"""

# ModernBERT norms before each block, as decoders do: after 100 steps on `builtin/modules` it is
# right on 72% of the held-out rows, a BERT of this size on 17% (docs/log.md, 2026-11-22).
_BUILTIN_BERT: dict[str, Any] = {
    "architectures": ["ModernBertForMaskedLM"],
    "model_type": "modernbert",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "global_attn_every_n_layers": 2,
    "local_attention": 128,
    "classifier_pooling": "mean",
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "cls_token_id": None,
    "sep_token_id": None,
}
_BUILTIN_T5: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 768,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "dropout_rate": 0.0,
}
BUILTIN_MODELS: dict[str, dict[str, Any]] = {
    "builtin": BUILTIN_CONFIG,
    "builtin/bert": _BUILTIN_BERT,
    "builtin/t5": _BUILTIN_T5,
}
"""Models that need no download, all with random weights: a decoder, an encoder, and both."""

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_WEIGHT_PATTERNS = (
    "*.safetensors", "*.bin", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.ckpt"
)  # fmt: skip

# Multimodal configurations keep the language model's numbers one level down.
_NESTED = ("text_config", "language_config", "llm_config", "decoder")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_SHOWN = 5
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True)
class ModelFacts:
    """Numbers about a model that settings depend on; None where `config.json` does not say."""

    source: str
    """A name of `BUILTIN_MODELS`, a folder, a file or a hub id."""

    config: dict[str, Any]
    """As it is in the file; the numbers below have the changes of `--model.config` in them."""

    hidden_size: int | None
    num_layers: int | None
    vocab_size: int | None
    model_type: str
    tied: bool
    """Input and output embeddings are one tensor."""

    has_weights: bool
    """False: training starts from random weights."""

    weight_files: tuple[Path, ...] = ()
    """In a local folder; empty for a hub id."""

    max_position_embeddings: int | None = None
    largest_parameter: int | None = None
    """Elements of the biggest tensor, an upper estimate with room for added tokens."""


def is_local(name: str) -> bool:
    """Say whether a model name is a path of this machine rather than a hub id."""
    looks_local = name.startswith(("/", "./", "../", "~")) or name.endswith(".json")
    return (
        name in BUILTIN_MODELS
        or looks_local
        or name.count("/") > 1
        or name in {".", ".."}
        or Path(name).expanduser().exists()
    )


def read_facts(section: ModelSection, *, find_weights: bool = True) -> ModelFacts:
    """Read what `config.json` says about the model of a run.

    Args:
        section: Names the model.
        find_weights: Whether to look for weight files in a local folder.

    Raises:
        ConfigError: No such model, or its `config.json` is unusable.
        CheckpointError: The folder lists weight files that are not there.
    """
    name = section.name
    if name in BUILTIN_MODELS:
        return _facts(section, BUILTIN_MODELS[name], weights=())
    if not is_local(name):
        return _facts(section, _read_config(_download(section), name), weights=None)
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"--model {name}: no such file or folder{_neighbours(path)}")
    if path.is_file():
        return _facts(section, _read_config(path, name), weights=())
    if not (path / "config.json").is_file():
        raise ConfigError(f"--model {name}: {_why_no_config(path)}")
    weights = _find_weights(path) if find_weights else ()
    return _facts(section, _read_config(path / "config.json", name), weights=weights)


def _facts(
    section: ModelSection, config: dict[str, Any], weights: tuple[Path, ...] | None
) -> ModelFacts:
    """Pick the numbers; `weights` None means a hub model, whose files were not listed."""
    changes = {name: read_number(value) for name, value in section.config.items()}
    text = {**_text_config(config), **changes}
    return ModelFacts(
        source=section.name,
        config=config,
        hidden_size=_first_int(text, _HIDDEN),
        num_layers=_first_int(text, _LAYERS),
        vocab_size=_first_int(text, ("vocab_size",)),
        model_type=str(config["model_type"]),
        # transformers ties by default; models that do not write `false` into the file.
        tied=bool({**text, **config, **changes}.get("tie_word_embeddings", True)),
        has_weights=weights is None or bool(weights),
        weight_files=weights or (),
        max_position_embeddings=_first_int(text, _POSITIONS),
        largest_parameter=_largest_parameter(text),
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    if _first_int(config, _HIDDEN) is not None:
        return config
    for key in (*_NESTED, "thinker_config"):
        if isinstance(config.get(key), Mapping):
            return _text_config(config[key])
    return config


def _first_int(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (config.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


def _largest_parameter(text: Mapping[str, Any]) -> int | None:
    hidden = _first_int(text, _HIDDEN)
    if hidden is None:
        return None
    # 1,024 more rows: added special tokens, and the rounding up to a multiple of 64.
    rows = (_first_int(text, ("vocab_size",)) or 0) + 1024
    inner = _first_int(text, ("intermediate_size", "n_inner", "ffn_dim")) or 4 * hidden
    experts = _first_int(text, ("num_experts", "num_local_experts", "n_routed_experts")) or 0
    expert_inner = _first_int(text, ("moe_intermediate_size",)) or inner
    per_layer = (_first_int(text, ("vocab_size_per_layer_input",)) or 0) * (
        (_first_int(text, ("hidden_size_per_layer_input",)) or 0) * (_first_int(text, _LAYERS) or 0)
    )
    # Gate and up projections may be one tensor, and all experts of a layer one tensor.
    return max(rows * hidden, 2 * inner * hidden, 2 * experts * expert_inner * hidden, per_layer)


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"--model {name}: {path} is not a text file") from None
    except OSError as error:
        raise ConfigError(f"--model {name}: cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"--model {name}: {path} is not JSON: {error.msg}, "
            f"line {error.lineno} column {error.colno}"
        ) from None
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ConfigError(
            f"--model {name}: {path} has no model_type, so it describes no transformers model"
        )
    return config


def _find_weights(folder: Path) -> tuple[Path, ...]:
    for index in INDEX_NAMES:
        if (folder / index).is_file():
            return _indexed_weights(folder, index)
    # The names that transformers loads; other files may lie beside them (adapters, the author's
    # own format).
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return (folder / name,)
    files = sorted(path for pattern in _WEIGHT_PATTERNS for path in folder.glob(pattern))
    sharded = [file.name for file in files if re.search(r"-\d+-of-\d+\.", file.name)]
    if sharded:
        raise CheckpointError(
            f"--model {folder}: {sharded[0]} is one of several files, but the index that joins "
            f"them ({INDEX_NAMES[0]}) is missing. Copy the whole folder again"
        )
    if files:
        raise CheckpointError(
            f"--model {folder}: {files[0].name} holds weights, but transformers loads only "
            f"{' or '.join(WEIGHT_NAMES)}. Convert or rename it; to start from random weights, "
            f"give {folder / 'config.json'}"
        )
    return ()


def _indexed_weights(folder: Path, index: str) -> tuple[Path, ...]:
    try:
        files = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        leading_out = sorted(file for file in files if _leads_out(folder, file))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"--model {folder}: {index} is damaged; copy it again") from None
    if leading_out:
        raise CheckpointError(
            f"--model {folder}: {index} lists {leading_out[0]!r}, which leads out of the folder; "
            "copy the file there if you trust it, or do not use this model"
        )
    # Not Path.is_file(): a name that no file can have is a missing file too.
    missing = sorted(file for file in files if not os.path.isfile(folder / file))  # noqa: PTH113
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise CheckpointError(
            f"--model {folder}: {len(missing)} of {len(files)} weight files that {index} lists "
            f"are missing: {shown}. Copy the whole folder again"
        )
    return tuple(folder / file for file in sorted(files))


def _leads_out(folder: Path, file: str) -> bool:
    is_plain = file == str(PurePosixPath(file)) and ".." not in PurePosixPath(file).parts
    return not is_plain or "\0" in file or find_escape(folder / file, folder) is not None


def _why_no_config(folder: Path) -> str:
    if (folder / "model" / "config.json").is_file():
        return f"this is a run folder; did you mean {folder / 'model'}?"
    if (folder / "resolved").is_dir() or (folder / "checkpoints").is_dir():
        return (
            "this is a run folder without an exported model; make one with "
            f"`bigft consolidate {folder} --output_dir DIR`"
        )
    if (folder / "manifest.json").is_file():
        return (
            "this is a training checkpoint; make a model of it with "
            f"`bigft consolidate {folder} --output_dir DIR`"
        )
    if (folder / "adapter_config.json").is_file():
        return "this is an adapter (LoRA); merge it into its base model first"
    if not any(folder.iterdir()):
        return "this folder is empty"
    inner = sorted(path.parent for path in folder.glob("*/config.json"))
    repair = f"; did you mean {inner[0]}?" if inner else ""
    return f"this folder has no config.json{repair}"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist)"
    return suggest_file(path, [sibling.name for sibling in path.parent.iterdir()])


def _download(section: ModelSection) -> Path:
    """Fetch `config.json` of a hub model, or find it in the cache."""
    # Imported here: only hub models need it, and it costs 0.2 s.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, revision = section.name, section.revision
    is_offline = not _is_hub_reachable(constants.ENDPOINT)
    try:
        path = hf_hub_download(name, "config.json", revision=revision, local_files_only=is_offline)
        return Path(path)
    except (EntryNotFoundError, OSError, ValueError) as error:
        raise _hub_error(name, revision, error) from None


def _is_hub_reachable(endpoint: str) -> bool:
    """Say whether the hub's name resolves; huggingface_hub itself retries for 23 s without."""
    if urllib.request.getproxies():
        return True  # The proxy resolves it.
    try:
        socket.getaddrinfo(urllib.parse.urlparse(endpoint).hostname, 443)
    except OSError:
        return False
    return True


def _hub_error(name: str, revision: str | None, error: Exception) -> BigftError:
    kind = type(error).__name__
    known = {
        "GatedRepoError": "the authors must grant access first: accept the conditions on its page "
        "and log in with `hf auth login`",
        "RepositoryNotFoundError": "no such folder here and no such repository on the hub (or it "
        "is private: log in with `hf auth login`)",
        "RevisionNotFoundError": f"the hub knows it, but has no revision {revision!r}",
        "EntryNotFoundError": "the repository has no config.json, so it holds no transformers "
        "model",
        "RemoteEntryNotFoundError": "the repository has no config.json, so it holds no "
        "transformers model",
        "HFValidationError": "neither an existing folder nor a hub id (owner/name)",
    }
    reason = known.get(
        kind,
        "no such folder here, and the hub cannot be reached and has not been asked for it before. "
        "Check the network, or give a local folder",
    )
    return ConfigError(f"--model {name}: {reason}")
