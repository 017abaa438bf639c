"""`bigft consolidate`: ZeRO shards -> one Hugging Face folder."""

import json
import sys
from pathlib import Path

from bigft.checkpoint.consolidate import EXPORT_DTYPES, Consolidated, consolidate
from bigft.errors import ConfigError, raise_together
from bigft.units import format_bytes, format_seconds, parse_bytes


def run_consolidate(
    source: str,
    output_dir: str,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    model: str | None = None,
    as_json: bool = False,
) -> None:
    """Consolidate a checkpoint and print where the model is.

    Args:
        source: Run folder, checkpoint folder or stock DeepSpeed checkpoint folder.
        output_dir: Folder to write.
        dtype: `auto` (what the model was trained in), `bfloat16`, `float16` or `float32`.
        max_shard_size: Largest safetensors file, such as `5GB`.
        model: Folder with `config.json` and the tokenizer, for a checkpoint that has none.
        as_json: Print one JSON object instead of text.

    Raises:
        ConfigError: The words given make no sense; all problems at once.
        CheckpointError: The checkpoint cannot be consolidated.
    """
    problems = []
    if not source:
        problems.append("consolidate: give the run folder or checkpoint to consolidate")
    if not output_dir:
        problems.append("--output_dir: required, not given; the folder to write the model to")
    if dtype is not None and dtype not in EXPORT_DTYPES:
        problems.append(f"--dtype={dtype}: give one of {', '.join(EXPORT_DTYPES)}")
    max_shard_bytes = 0
    try:
        max_shard_bytes = parse_bytes(max_shard_size or "5GB")
        if max_shard_bytes < 1:
            problems.append(f"--max_shard_size={max_shard_size}: give a size above 0, such as 5GB")
    except ValueError as error:
        problems.append(f"--max_shard_size={max_shard_size}: {error}")
    if model is not None and not (Path(model) / "config.json").is_file():
        problems.append(f"--model={model}: no folder with a config.json; give the model's folder")
    if problems:
        raise_together(ConfigError, problems)
    result = consolidate(
        Path(source),
        Path(output_dir),
        dtype=dtype or "auto",
        max_shard_bytes=max_shard_bytes,
        assets=Path(model) if model is not None else None,
    )
    sys.stdout.write(_format_json(result) if as_json else _format_text(result))


def _format_text(result: Consolidated) -> str:
    size, seconds = format_bytes(result.bytes), format_seconds(result.seconds)
    return f"{result.path}  {size}  {seconds}\n"


def _format_json(result: Consolidated) -> str:
    facts = {
        "path": str(result.path),
        "parameters": result.parameters,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        "peak_rss_bytes": result.peak_rss_bytes,
        "verified": result.verified,
    }
    return json.dumps(facts) + "\n"
