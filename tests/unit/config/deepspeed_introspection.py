"""Reads the installed DeepSpeed's own configuration code and says which keys it knows.

Used by the test that keeps `bigft/config/deepspeed_keys.py` true, and, run as a program, prints
the table anew after an upgrade: `python tests/unit/config/deepspeed_introspection.py`.
"""

import enum
import types
import typing
from typing import Any

from pydantic import BaseModel

PRIMITIVES = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}


def describe(annotation: Any) -> Any:
    """Translate one pydantic annotation into the notation of the key table."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        rest = [a for a in arguments if a is not type(None)]
        optional = "?" if len(rest) < len(arguments) else ""
        inner = describe(rest[0]) if len(rest) == 1 else "any"
        return inner if isinstance(inner, dict) else f"{inner}{optional}"
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (list, dict, tuple):
        return "dict" if origin is dict else "list"
    if not isinstance(annotation, type) or issubclass(annotation, BaseModel):
        return "any" if not isinstance(annotation, type) else model_keys(annotation)
    if issubclass(annotation, enum.Enum):
        values = [member.value for member in annotation]
        return "int" if isinstance(values[0], int) else "|".join(map(str, values))
    return PRIMITIVES.get(annotation, "str" if annotation.__name__ == "Path" else "any")


def model_keys(model: type[BaseModel]) -> dict[str, Any]:
    """Return the keys of a configuration model, by the name a JSON uses."""
    return {
        field.alias or name: describe(field.annotation)
        for name, field in model.model_fields.items()
        if not (field.json_schema_extra or {}).get("deprecated")
    }


def deprecated_keys(model: type[BaseModel]) -> set[str]:
    """Return the names that DeepSpeed still takes and warns about."""
    return {
        name
        for name, field in model.model_fields.items()
        if (field.json_schema_extra or {}).get("deprecated")
    }


def pydantic_sections() -> dict[str, dict[str, Any]]:
    """Return the sections that DeepSpeed declares as pydantic models."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.inference.config import WeightQuantConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime.config import HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": model_keys(DeepSpeedZeroConfig),
        "bf16": model_keys(DeepSpeedBF16Config),
        "fp16": model_keys(DeepSpeedFP16Config),
        "comms_logger": model_keys(CommsLoggerConfig),
        **model_keys(DeepSpeedMonitorConfig),
        "timers": {"throughput": model_keys(DeepSpeedThroughputTimerConfig)},
        "compile": model_keys(CompileConfig),
        "hybrid_engine": model_keys(HybridEngineConfig),
        "weight_quantization": model_keys(WeightQuantConfig),
    }


class RecordingDict(dict):
    """A dict that remembers every key that anybody asked it for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        # DeepSpeed asks `if NAME in param_dict.keys()`.
        return self


def keys_asked_by_deepspeed(sections: dict[str, dict[str, Any]]) -> dict[str, set[str]]:
    """Let DeepSpeed read a recording JSON; return the keys it asked for, per section.

    Args:
        sections: Sections to hand over, so that DeepSpeed reads inside them. The top level is
            returned under the name `""`.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    inner = {name: RecordingDict(content) for name, content in sections.items()}
    outer = RecordingDict(inner)
    DeepSpeedConfig.__new__(DeepSpeedConfig)._initialize_params(outer)
    return {"": outer.asked, **{name: section.asked for name, section in inner.items()}}


if __name__ == "__main__":
    import pprint

    pprint.pprint(pydantic_sections(), sort_dicts=False, width=100)
