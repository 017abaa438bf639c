"""Parameters that stay as they are: chosen by name, before the engine is built."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from bigft.errors import ConfigError, raise_together

_SHOWN = 4


def freeze(module: nn.Module, patterns: Sequence[str]) -> str:
    """Stop training the parameters whose names match a pattern.

    They get no gradient, no fp32 copy and no moments; checkpoints keep them in their own format.

    Args:
        module: The model, partitioned or not.
        patterns: Regular expressions, searched in the names of parameters; of a tied parameter in
            each of its names.

    Returns:
        A note for the user.

    Raises:
        ConfigError: A pattern matches nothing, or nothing is left to train.
    """
    names = dict(module.named_parameters(remove_duplicate=False))
    problems = [_explain(pattern, names) for pattern in patterns if not _find(pattern, names)]
    if problems:
        raise_together(ConfigError, problems)
    for pattern in patterns:
        for name in _find(pattern, names):
            names[name].requires_grad_(False)
    shown = ",".join(patterns)
    frozen, trained = (
        [p for p in module.parameters() if p.requires_grad is is_trained]
        for is_trained in (False, True)
    )
    if not trained:
        raise ConfigError(
            f"--model.freeze {shown}: matches all {len(frozen)} parameters of the model, so nothing"
            " is left to train. Give narrower patterns"
        )
    total = _count(frozen) + _count(trained)
    return (
        f"frozen by --model.freeze {shown}: {len(frozen)} of {len(frozen) + len(trained)} tensors,"
        f" {_count(frozen):,} of {total:,} parameters ({_count(frozen) / total:.1%})"
    )


def _find(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(pattern, name)]


def _count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) for p in parameters)


def _explain(pattern: str, names: Iterable[str]) -> str:
    every = list(names)
    # Some from everywhere in the model: the first ones are all of the embeddings and layer 0.
    spread = every[:: max(1, len(every) // _SHOWN)][:_SHOWN]
    return (
        f"--model.freeze {pattern}: matches no parameter. There are {len(every)} names, such as"
        f" {', '.join(spread)}"
    )
