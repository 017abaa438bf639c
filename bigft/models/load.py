"""From a name to a module whose parameters are partitioned from birth and equal the files."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import nn

from bigft.errors import CheckpointError, ConfigError
from bigft.models.facts import BUILTIN_MODELS, ModelFacts
from bigft.models.overrides import override
from bigft.models.section import ModelSection
from bigft.models.weights import (
    NewHead,
    check_names,
    check_pickles,
    check_values,
    read_headers,
)

logger = logging.getLogger(__name__)

_VOCABULARY_MULTIPLE = 64
"""Embeddings grow to a multiple of this: matrix units want it, and so does every rank's slice."""


class ZeroContext(Protocol):
    """What loading needs to know about ZeRO; `engine.zero.Zero` is the real one."""

    @property
    def partitions_parameters(self) -> bool:
        """Whether each rank holds only its slices."""

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Build models partitioned inside the block."""

    def gathered(
        self, parameters: Iterable[nn.Parameter], *, modifier_rank: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Hold full parameters inside the block."""

    def partition(self, module: nn.Module) -> None:
        """Partition what was built whole after loading."""

    def set_leaf_modules(self, module: nn.Module, classes: list[type[nn.Module]]) -> None:
        """Gather modules of these classes as a whole."""

    def check_partitioned(self, module: nn.Module) -> None:
        """Refuse a module with a whole parameter."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for the engine, and what was decided on the way."""

    module: nn.Module
    attention: str
    notes: list[str]


@dataclass(frozen=True)
class Plan:
    """A model that is to be built."""

    config: Any
    attention: str
    """Implementation of the attention."""
    skeleton: Any
    """The model without storage."""


def leave_as_is(config: Any) -> None:
    """Change nothing of a config."""


def build_config(section: ModelSection, facts: ModelFacts, num_tokens: int) -> Any:
    """Build the transformers config; for random weights the vocabulary fits the tokenizer."""
    from transformers import AutoConfig

    if facts.has_weights or facts.source not in BUILTIN_MODELS:
        source = section.name if facts.has_weights or Path(section.name).is_dir() else None
        config = (
            AutoConfig.from_pretrained(
                source,
                revision=section.revision or "main",
                trust_remote_code=section.trust_remote_code,
            )
            if source
            else _config_from_dict(facts.config)
        )
    else:
        config = _config_from_dict(facts.config)
    if section.config:
        config = override(config, section.config, None if facts.has_weights else facts.config)
    text = config.get_text_config()
    # Not every architecture has a vocabulary: `load_model` says so in better words.
    if not facts.has_weights and num_tokens > getattr(text, "vocab_size", num_tokens):
        text.vocab_size = _round_up(num_tokens)
    text.use_cache = False
    return config


def _config_from_dict(values: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    rest = {key: value for key, value in values.items() if key != "model_type"}
    return AutoConfig.for_model(values["model_type"], **rest)


def _round_up(count: int) -> int:
    return -(-count // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


def load_model(
    section: ModelSection,
    facts: ModelFacts,
    zero: ZeroContext,
    *,
    auto_class: Any,
    tokenizer: Any,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    configure: Callable[[Any], None] = leave_as_is,
    has_new_head: bool = False,
) -> LoadedModel:
    """Build the model under ZeRO, load its weights, and check them against the files.

    Args:
        section: Name and choices of the user.
        facts: What its config.json says.
        zero: Whether and how parameters are partitioned.
        auto_class: The transformers auto class of the task.
        tokenizer: For the size of the vocabulary.
        dtype: Of the weights that the forward pass uses.
        device: Of this rank.
        seed: Of random weights; the same on every rank.
        configure: Changes the config before the model is built.
        has_new_head: Whether layers after the base model may lack in the files; then they start
            from random weights, and those that the model has no place for are left out.

    Raises:
        CheckpointError: Weights are missing, unexpected or of another shape; all are named.
        ConfigError: transformers does not know the architecture.

    Collective: every rank.
    Memory: under stage 3, this rank's slice plus one layer; else the whole model.
    """
    plan = plan_model(section, facts, auto_class, len(tokenizer), configure, device, dtype)
    config, attention, skeleton = plan.config, plan.attention, plan.skeleton
    notes: list[str] = []
    check_pickles(facts.weight_files)
    headers = read_headers(facts.weight_files)
    head = NewHead()
    if headers:
        head = check_names(skeleton, headers, section.name, has_new_head=has_new_head)
        notes += head.describe()
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    # transformers imports the model's file lazily; inside zero.Init that would patch it halfway.
    with zero.building():
        if facts.has_weights:
            # Under another name they are left out; transformers has no other way under ZeRO-3.
            moved = {f"^{re.escape(name)}$": f"replaced.{name}" for name in head.replaced}
            with _report_silenced(head):
                module = _load_weights(
                    auto_class, section, config=config, key_mapping=moved or None, **arguments
                )
        else:
            module = auto_class.from_config(
                config, trust_remote_code=section.trust_remote_code, **arguments
            )
            notes.append(f"{section.name}: no weights there, training starts from random ones")
    if headers:
        kept = {name: header for name, header in headers.items() if name not in head.replaced}
        check_values(module, kept, zero, section.name)
    if note := grow_vocabulary(module, len(tokenizer), zero):
        notes.append(note)
    zero.check_partitioned(module)
    experts = find_expert_blocks(module)
    zero.set_leaf_modules(module, experts)
    if experts:
        notes.append(f"mixture of experts: {', '.join(c.__name__ for c in experts)} gathered whole")
    return LoadedModel(module, attention, notes)


def plan_model(
    section: ModelSection,
    facts: ModelFacts,
    auto_class: Any,
    num_tokens: int,
    configure: Callable[[Any], None],
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """Decide what a model will be; its weights are not looked at.

    Raises:
        ConfigError: transformers does not know the architecture.
    """
    config = _understood(lambda: build_config(section, facts, num_tokens), section.name)
    configure(config)
    model_class = _model_class(auto_class, config, section)
    attention = _supported_attention(
        pick_attention(section.attention, device, dtype),
        model_class,
        explicit=section.attention != "auto",
    )
    skeleton = build_skeleton(auto_class, config, section, attention, dtype)
    return Plan(config, attention, skeleton)


@contextlib.contextmanager
def _report_silenced(head: NewHead) -> Iterator[None]:
    """Keep transformers from reporting, once per rank, what the notes say."""
    from transformers.utils import logging as hf_logging

    before = hf_logging.get_verbosity()
    if head != NewHead():
        hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _load_weights(auto_class: Any, section: ModelSection, **arguments: Any) -> Any:
    try:
        return auto_class.from_pretrained(
            section.name,
            revision=section.revision or "main",
            trust_remote_code=section.trust_remote_code,
            **arguments,
        )
    except UnpicklingError as error:
        # torch's own words advise to load the file with full trust.
        raise CheckpointError(
            f"--model {section.name}: its weight files hold more than weights and were refused;"
            " nothing in them was run. Use a model in safetensors"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"--model {section.name}: the weights cannot be read"
            f" ({str(error).strip().splitlines()[0]}); check the folder, or name and network"
        ) from error


def _understood(build: Any, name: str) -> Any:
    try:
        return build()
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ConfigError(
            f"--model {name}: transformers cannot read its config ({_first_line(error)});"
            " check config.json, install the transformers version it asks for, or allow its own"
            " code with --model.trust_remote_code if you trust the author"
        ) from error


def _model_class(auto_class: Any, config: Any, section: ModelSection) -> type[nn.Module] | None:
    found = find_class(auto_class, config)
    if found is None:
        if section.trust_remote_code:
            return None
        raise ConfigError(
            f"--model {section.name}: transformers has no"
            f" {auto_class.__name__.removeprefix('Auto')} for model_type"
            f" {config.model_type!r}; pick a model of that kind"
        )
    return found


def find_class(auto_class: Any, config: Any) -> type[nn.Module] | None:
    """Find what an auto class builds for a config, None where it knows nothing."""
    found: type[nn.Module] | None = auto_class._model_mapping.get(type(config), None)
    return found


def pick_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the attention implementation: FlashAttention 2 where it can run, else SDPA."""
    if wanted != "auto":
        return wanted
    from transformers.utils import is_flash_attn_2_available

    half = dtype in (torch.bfloat16, torch.float16)
    return (
        "flash_attention_2"
        if half and device.type == "cuda" and is_flash_attn_2_available()
        else "sdpa"
    )


def _supported_attention(name: str, model_class: Any, *, explicit: bool) -> str:
    if explicit or model_class is None:
        return name
    if name == "flash_attention_2" and not getattr(model_class, "_supports_flash_attn", True):
        name = "sdpa"
    if name == "sdpa" and not getattr(model_class, "_supports_sdpa", True):
        return "eager"
    return name


def build_skeleton(
    auto_class: Any, config: Any, section: ModelSection, attention: str, dtype: torch.dtype
) -> nn.Module:
    """Build the model without storage: names, shapes and counts only."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # An earlier run of this process may have left ZeRO-3 on: the skeleton would be partitioned,
    # with collectives, on those ranks whose garbage collector is late.
    unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            skeleton: nn.Module = auto_class.from_config(
                config,
                trust_remote_code=section.trust_remote_code,
                attn_implementation=attention,
                dtype=dtype,
            )
    except (ImportError, ValueError) as error:
        # transformers knows which kernels are installed and which of them a model can use.
        raise ConfigError(
            f"--model.attention {attention}: cannot be used with --model {section.name}"
            f" ({_first_line(error)}); leave it out, or choose sdpa or eager"
        ) from error
    return skeleton


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def grow_vocabulary(module: Any, num_tokens: int, zero: ZeroContext) -> str | None:
    """Grow the embeddings when the tokenizer has tokens that the model does not know.

    New rows start as the mean of the old ones, so that new tokens begin as likely as an average
    token (Hewitt 2021) instead of swamping the softmax.

    Returns:
        A note for the user, or None when nothing had to grow.

    Collective: every rank.
    Memory: the full embedding matrices on each rank while they grow.
    """
    old = module.get_input_embeddings().num_embeddings
    if num_tokens <= old:
        return None
    module.resize_token_embeddings(
        num_tokens, pad_to_multiple_of=_VOCABULARY_MULTIPLE, mean_resizing=False
    )
    tables = [module.get_input_embeddings().weight]
    head = module.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    with zero.gathered(tables, modifier_rank=0), torch.no_grad():
        for table in tables:
            if table.shape[0] > old:
                table[old:] = table[:old].float().mean(0).to(table.dtype)
    # transformers builds the new tables whole, outside of zero.Init.
    zero.partition(module)
    new = module.get_input_embeddings().num_embeddings
    return f"vocabulary grown from {old:,} to {new:,} (tokenizer: {num_tokens:,}), new rows = mean"


def find_expert_blocks(module: nn.Module) -> list[type[nn.Module]]:
    """Find the classes of mixture-of-experts blocks by their structure.

    A block routes each token to some of several alike children, so ranks run different children
    and would wait for each other's gathers for ever. It is told by a `ModuleList` of two or more
    modules of one class below it whose use depends on a sibling gate or router. Fused experts (one
    3-D tensor) need nothing: a tensor is gathered whole.
    """
    classes: dict[type[nn.Module], None] = {}
    for child in module.modules():
        named = dict(child.named_children())
        routed = any(word in name.lower() for name in named for word in ("gate", "router"))
        if routed and any(_is_expert_list(part) for part in named.values()):
            classes[type(child)] = None
    return list(classes)


def _is_expert_list(part: nn.Module) -> bool:
    if not isinstance(part, nn.ModuleList | nn.ModuleDict) or len(part) < 2:
        return False
    children = list(part.values()) if isinstance(part, nn.ModuleDict) else list(part)
    return len({type(child) for child in children}) == 1


def count_parameters(module: nn.Module, *, trained: bool = False) -> int:
    """Count parameters, or only those that are trained; each tied one once, partitioned or not."""
    wanted = (p for p in module.parameters() if p.requires_grad or not trained)
    return sum(getattr(p, "ds_numel", p.numel()) for p in wanted)


def plan_parameters(
    section: ModelSection,
    facts: ModelFacts,
    auto_class: Any,
    num_tokens: int,
    configure: Callable[[Any], None] = leave_as_is,
) -> int:
    """Count the parameters that a model will have, without building any of them."""
    config = _understood(lambda: build_config(section, facts, num_tokens), section.name)
    configure(config)
    skeleton = build_skeleton(auto_class, config, section, "eager", torch.bfloat16)
    return count_parameters(skeleton)
