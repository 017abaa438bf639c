"""`bigft consolidate`: a checkpoint -> one Hugging Face folder."""

import contextlib
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from bigft.checkpoint.consolidate import Consolidated, consolidate
from bigft.checkpoint.source import Source
from bigft.checkpoint.swap import check_output
from bigft.commands.parts.gathering import gathered
from bigft.config.options import ConsolidateOptions, read_options
from bigft.config.request import Request
from bigft.errors import ConfigError, raise_together
from bigft.models.download import fetch_assets
from bigft.units import format_bytes, format_seconds, parse_bytes


def main(request: Request) -> None:
    """Consolidate a checkpoint and print where the model is.

    Raises:
        ConfigError: The words given make no sense; all problems at once.
        CheckpointError: The checkpoint cannot be consolidated.
    """
    options = read_options(request, ConsolidateOptions)
    problems: list[str] = []
    source = _find_source(request, options, problems)
    max_shard_bytes = _read_size(options.max_shard_size, problems)
    assets = _find_assets(options.model, problems)
    if options.output_dir == "":
        problems.append("--output_dir: empty; name a folder, or leave the flag out")
    # A folder that is not there is no matter of this flag.
    is_elsewhere = options.hostfile is not None and source and not source.exists()
    if is_elsewhere and options.output_dir is None:
        problems.append(f"--output_dir: required: {source} is not on this host")
    if options.output_dir is None and source and source.exists() and not _is_run(source):
        problems.append(
            f"--output_dir: required: {source} is no run folder, whose model/ would be meant"
        )
    if problems:
        raise_together(ConfigError, problems)
    assert source is not None
    output = Path(options.output_dir) if options.output_dir else source / "model"
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_Bar())
        found: Path | Source = source
        if options.hostfile:
            check_output(output.resolve())
            found = stack.enter_context(
                gathered(source, Path(options.hostfile), output.resolve(), bar.advance)
            )
        result = consolidate(
            found,
            output,
            dtype=options.dtype,
            max_shard_bytes=max_shard_bytes,
            assets=assets,
            verify=options.verify,
            progress=bar.advance,
        )
    sys.stdout.write(_format_json(result) if options.as_json else _format_text(result))


def _find_source(request: Request, options: ConsolidateOptions, problems: list[str]) -> Path | None:
    given = [*request.words, *([options.source] if options.source is not None else [])]
    if given == [""]:
        problems.append("RUN_OR_CHECKPOINT: empty; give a folder")
        return None
    if len(given) == 1:
        return Path(given[0])
    problems.append(
        f"RUN_OR_CHECKPOINT {given[0]} and --from {given[1]}: give one of them"
        if given
        else "RUN_OR_CHECKPOINT: required, not given: `bigft consolidate RUN_OR_CHECKPOINT`, or"
        " --from with a folder that DeepSpeed wrote"
    )
    return None


def _is_run(folder: Path) -> bool:
    # `resolved` alone: the run has not saved yet.
    return (folder / "checkpoints").is_dir() or (folder / "resolved").is_dir()


def _read_size(text: str, problems: list[str]) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as error:
        problems.append(f"--max_shard_size {text}: {error}")
        return 1
    if size < 1:
        problems.append(f"--max_shard_size {text}: give a size above 0, as 5GB")
    return size


def _find_assets(model: str | None, problems: list[str]) -> Path | None:
    if model is None:
        return None
    try:
        return fetch_assets(model)
    except ConfigError as error:
        problems.append(str(error))
        return None


class _Bar:
    """A bar on the terminal; silent where standard error is none."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._what = ""

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, what: str, num_bytes: int, total: int) -> None:
        """Show that so many more bytes are done."""
        if what != self._what:
            # Imported here: `--help` and mistakes do not need it.
            from tqdm import tqdm

            if self._bar is not None:
                self._bar.close()
            self._what = what
            options: dict[str, Any] = {"unit": "B", "unit_scale": True, "leave": False}
            self._bar = tqdm(total=total, desc=what, disable=None, file=sys.stderr, **options)
        self._bar.update(num_bytes)


def _format_text(result: Consolidated) -> str:
    size, seconds = format_bytes(result.bytes), format_seconds(result.seconds)
    return f"{result.path}  {size}  {seconds}\n"


def _format_json(result: Consolidated) -> str:
    facts = {
        "path": str(result.path),
        "source": str(result.source),
        "parameters": result.parameters,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        "peak_rss_bytes": result.peak_rss_bytes,
        "verified": result.verified,
        "reread": result.reread,
    }
    return json.dumps(facts) + "\n"
