"""`bigft compress`: a finished model -> a smaller one, and what that costs."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bigft.checkpoint.swap import check_output
from bigft.commands.parts.calibration import load_for_text
from bigft.commands.parts.scoring import read_with_data, score_folder
from bigft.compression.methods import Done, DropLayers, Gguf, Method, Prune, Quantize
from bigft.compression.prune import read_pruning
from bigft.config.options import CompressOptions, EvaluateOptions
from bigft.config.request import Request
from bigft.data.section import DataSection
from bigft.errors import BigftError, CheckpointError, ConfigError, list_problems, raise_together
from bigft.units import format_bytes, format_count

_METHODS = ("prune", "quantize", "drop_layers", "gguf")


def main(request: Request) -> None:
    """Check, score, compress, score again, and only then give the result its name.

    Raises:
        ConfigError: The words given make no sense, or do not go with the model; all problems at
            once.
        CheckpointError: The folder holds no model, or the result cannot be loaded.
        DataError: The data are missing or bad.
    """
    options, data = read_with_data(request, CompressOptions)
    method, source, output = _check(Path(request.words[0]), options)

    from bigft.checkpoint.swap import swap_into_place, unfinished_folder
    from bigft.compression.write import extend_card, sync_tree

    started = time.perf_counter()
    found: dict[str, Any] = {"path": str(output), "source": str(source.folder)}
    before = {**_measure(source.folder), **_score(source.folder, options, data)}
    with unfinished_folder(output) as folder:
        done = method.write(source, folder, lambda: load_for_text(source.folder, options, data))
        after = {**_measure(folder), **_score_result(folder, method, options, data)}
        extend_card(folder, _describe(method, before, after, options), done.note)
        sync_tree(folder)
        swap_into_place(folder, output)
    found |= {"method": method.flag, **done.facts, "before": before, "after": after}
    found["seconds"] = round(time.perf_counter() - started, 3)
    sys.stdout.write(json.dumps(found) + "\n" if options.as_json else _format(found, done))


def _check(folder: Path, options: CompressOptions) -> tuple[Method, Any, Path]:
    """Find everything that is wrong before anything is loaded."""
    errors: list[BigftError] = []

    def attempt(check: Any, *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except BigftError as error:
            errors.append(error)
        return None

    method = attempt(_choose, options)
    output = attempt(_check_output, options.output_dir, folder)
    is_there = attempt(_check_folder, folder)
    if method is not None:
        attempt(method.find_missing)
    source = None
    if is_there:
        from bigft.compression.source import open_source

        source = attempt(open_source, folder)
    if method is not None and source is not None and not errors:
        problems = method.find_problems(source)
        errors += map(ConfigError, problems)
    if errors:
        is_config = any(isinstance(error, ConfigError) for error in errors)
        kind = ConfigError if is_config else type(errors[0])
        raise_together(kind, [text for error in errors for text in list_problems(error)])
    return method, source, output


def _choose(options: CompressOptions) -> Method:
    given = [name for name in _METHODS if getattr(options, name) is not None]
    if len(given) != 1:
        named = " and ".join(f"--{name}" for name in given) or "no method"
        flags = ", ".join(f"--{name}" for name in _METHODS)
        raise ConfigError(
            f"{named}: give one of {flags}; to combine some, compress the result again"
        )
    if options.prune is not None:
        return Prune(f"--prune {options.prune}", read_pruning(options.prune))
    if options.quantize is not None:
        return Quantize(f"--quantize {options.quantize}", options.quantize)
    if options.drop_layers is not None:
        return DropLayers(options.drop_layers)
    assert options.gguf is not None
    return Gguf(options.gguf, os.environ, is_scored=options.evaluate == "both")


def _check_output(text: str | None, source: Path) -> Path:
    if not text:
        raise ConfigError("--output_dir: required, not given: name a folder for the result")
    output = Path(text).resolve()
    # Not even an earlier export gives way, as it does to `consolidate`: it may be the only one.
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"--output_dir {text}: exists already; choose another name, or remove it")
    check_output(output)
    if source.resolve() in (output, *output.parents):
        raise ConfigError(f"--output_dir {text}: lies in the model's folder; choose another")
    return output


def _check_folder(folder: Path) -> bool:
    if not folder.exists():
        raise CheckpointError(
            f"{folder}: no such folder; give the model/ folder of a finished run, or of a model"
            " that is downloaded"
        )
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no folder; give the one with config.json and the weights")

    from bigft.evaluation.plain import check_model

    check_model(str(folder))
    return True


def _score(folder: Path, options: CompressOptions, data: DataSection) -> dict[str, float]:
    if options.evaluate == "none":
        return {}
    shared = {name: getattr(options, name) for name in ("data", "max_length", "batch_size")}
    chosen = EvaluateOptions(device=options.device, **shared)
    return dict(score_folder(str(folder), chosen, data).numbers)


def _score_result(
    folder: Path, method: Method, options: CompressOptions, data: DataSection
) -> dict[str, float]:
    """Score what was made, which not every architecture of transformers can be loaded from.

    Raises:
        CheckpointError: It cannot; says so instead of showing transformers' own failure.
    """
    try:
        return _score(folder, options, data)
    except BigftError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        raise CheckpointError(
            f"{method.flag}: transformers cannot load a {name} that was compressed like this"
            f" ({type(error).__name__}: {reason}); nothing was kept. Use another method"
        ) from error


def _measure(folder: Path) -> dict[str, float]:
    """Count the bytes of the files with weights, as they lie on the disk."""
    files = [path for kind in ("*.safetensors", "*.gguf") for path in folder.glob(kind)]
    return {"bytes": sum(path.stat().st_size for path in files)}


def _describe(
    method: Method, before: dict[str, float], after: dict[str, float], options: CompressOptions
) -> dict[str, str]:
    rows = {"Method": f"`bigft compress {method.flag}`"}
    rows["Weights on disk"] = f"{format_bytes(before['bytes'])} -> {format_bytes(after['bytes'])}"
    for name in ("loss", "token_accuracy", "accuracy"):
        if name in before and name in after:
            rows[name.replace("_", " ").capitalize()] = f"{before[name]:.4f} -> {after[name]:.4f}"
    if "loss" in before:
        rows["Measured on"] = f"`{options.data or 'the built-in data'}`"
    return rows


def _format(found: dict[str, Any], done: Done) -> str:
    before, after = found["before"], found["after"]
    lines = [f"{'':<18}{'before':>16}{'after':>16}{'change':>12}"]
    for name in before:
        if name not in after:
            continue
        one, other = before[name], after[name]
        if name == "bytes":
            texts = (
                format_bytes(one),
                format_bytes(other),
                f"{round(100 * (other / one - 1), 1) + 0.0:+.1f}%",
            )
        elif float(one).is_integer() and float(other).is_integer():
            texts = format_count(one), format_count(other), ""
        else:
            texts = f"{one:,.4f}", f"{other:,.4f}", f"{round(other - one, 4) + 0.0:+,.4f}"
        lines.append(f"{name:<18}{texts[0]:>16}{texts[1]:>16}{texts[2]:>12}".rstrip())
    return "\n".join([*lines, "", done.note.replace("`", ""), found["path"], ""])
