"""Full-parameter fine-tuning of models that are too big for the GPU at hand."""

from typing import Any

__version__ = "0.1.0"

_API = ("consolidate", "plan", "train")


def __getattr__(name: str) -> Any:
    """Load the Python interface when it is first asked for: `import bigft` stays light."""
    if name in _API:
        from importlib import import_module

        return getattr(import_module("bigft.api"), name)
    raise AttributeError(f"module 'bigft' has no attribute {name!r}")
