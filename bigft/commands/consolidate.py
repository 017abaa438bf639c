"""`bigft consolidate`: ZeRO shards -> one Hugging Face folder."""

import json
import sys
from pathlib import Path

from bigft.checkpoint.consolidate import Consolidated, consolidate
from bigft.config.options import ConsolidateOptions, read_options
from bigft.config.request import Request
from bigft.errors import ConfigError, raise_together
from bigft.units import format_bytes, format_seconds, parse_bytes


def main(request: Request) -> None:
    """Consolidate a checkpoint and print where the model is.

    Raises:
        ConfigError: The words given make no sense; all problems at once.
        CheckpointError: The checkpoint cannot be consolidated.
    """
    options = read_options(request, ConsolidateOptions)
    source = Path(request.words[0])
    problems = []
    try:
        max_shard_bytes = parse_bytes(options.max_shard_size)
    except ValueError as error:
        max_shard_bytes = 1
        problems.append(f"--max_shard_size {options.max_shard_size}: {error}")
    if max_shard_bytes < 1:
        problems.append(f"--max_shard_size {options.max_shard_size}: give a size above 0, as 5GB")
    if options.model is not None and not (Path(options.model) / "config.json").is_file():
        problems.append(f"--model {options.model}: no folder with a config.json; give the model's")
    if options.output_dir is None and not (source / "checkpoints").is_dir():
        problems.append(
            f"--output_dir: required: {source} is no run folder, whose model/ would be meant"
        )
    if problems:
        raise_together(ConfigError, problems)
    result = consolidate(
        source,
        Path(options.output_dir) if options.output_dir else source / "model",
        dtype=options.dtype,
        max_shard_bytes=max_shard_bytes,
        assets=Path(options.model) if options.model is not None else None,
    )
    sys.stdout.write(_format_json(result) if options.as_json else _format_text(result))


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
