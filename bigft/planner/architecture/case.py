"""One model that is to be written down: what its `config.json` says, and what it is for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bigft.planner.architecture.weights import Architecture


class UnknownArchitectureError(LookupError):
    """The weights of this model cannot be told from its config here; transformers may know them."""

    def __init__(self, model_type: str, reason: str) -> None:
        """Keep both, and join them.

        Args:
            model_type: As in `config.json`.
            reason: What is not known, as half a sentence.
        """
        super().__init__(f"model_type {model_type!r}: {reason}")
        self.model_type = model_type
        self.reason = reason


@dataclass(frozen=True)
class Case:
    """A config with its family's defaults filled in, a task, and how many labels it tells apart."""

    model_type: str
    values: Mapping[str, Any]
    task: str
    labels: int
    has_weights: bool = False
    """Whether there are files to load, which may hold what the config alone does not ask for."""

    def number(self, name: str) -> int:
        """Return a whole number that every model of the family has."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.unknown(f"{name} is {value!r}, not a whole number")
        return value

    def find_number(self, name: str) -> int | None:
        """Return a whole number, None where it is null or absent."""
        return None if self.values.get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """Return whether something is switched on."""
        return bool(self.values.get(name))

    def unknown(self, reason: str) -> UnknownArchitectureError:
        """Return the error that says why this model is not known."""
        return UnknownArchitectureError(self.model_type, reason)

    @property
    def has_labels(self) -> bool:
        """Whether a head of a few numbers stands in the place of the vocabulary's."""
        return self.task in ("classification", "regression")

    @property
    def head_outputs(self) -> int:
        """Columns of the head."""
        return self.labels if self.has_labels else self.number("vocab_size")

    @property
    def is_tied(self) -> bool:
        """Whether the head of the vocabulary is the embedding table."""
        return not self.has_labels and self.flag("tie_word_embeddings")


@dataclass(frozen=True)
class Family:
    """How all models of one `model_type` are written down."""

    tasks: tuple[str, ...]
    """Those that transformers has a class for."""

    build: Callable[[Case], Architecture]
    defaults: Mapping[str, Any]
    """What transformers' config class takes for keys that `config.json` leaves out."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names that `config.json` may use: `hidden_size` for GPT-2's `n_embd`."""

    ignored: tuple[str, ...] = ()
    """Keys that mean something to the family's kin, and nothing to it."""

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in defaults."""
        given = {key: value for key, value in config.items() if key not in self.ignored}
        # Some files hold both names, the old one empty.
        renamed = {
            name: given[key] for key, name in self.aliases.items() if given.get(key) is not None
        }
        return {**self.defaults, **given, **renamed}


DECODER_TASKS = ("causal_lm", "classification", "regression")
ENCODER_TASKS = ("causal_lm", "masked_lm", "classification", "regression")
"""BERT's kin read with a causal mask too."""
