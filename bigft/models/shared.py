"""One body with several heads, each of them what transformers puts behind such a body.

A head is a whole model of transformers whose body was taken out: it asks a stand-in, which says
what the one body has said. So pooling and head are transformers' own, and what is exported computes
the same. The body runs once for the rows of all tasks, and after it every head in a fixed order, so
that ranks with other mixtures of rows gather the same parameters.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bigft.errors import BigftError, CheckpointError, ConfigError, list_problems, raise_together
from bigft.models.facts import ModelFacts
from bigft.models.load import (
    LoadedModel,
    Plan,
    ZeroContext,
    build_skeleton,
    count_parameters,
    find_class,
    load_model,
    plan_model,
)
from bigft.models.section import ModelSection
from bigft.models.weights import Header, read_headers, read_tensor, rename_all


class _Kind(Protocol):
    has_new_head: bool

    def auto_class(self) -> Any: ...

    def configure(self, config: Any, tokenizer: Any) -> None: ...


@dataclass(frozen=True)
class Head:
    """What one task needs behind the body."""

    auto_class: Any
    """Of transformers: it builds the head, with a body."""

    configure: Callable[[Any], None]
    """Writes into its config what the task decides."""

    has_new_head: bool
    """Whether weights may lack it."""

    @classmethod
    def of(cls, task: _Kind, tokenizer: Any) -> "Head":
        """Take what a task says when it is alone."""
        configure = partial(task.configure, tokenizer=tokenizer)
        return cls(task.auto_class(), configure, task.has_new_head)


class _Said(nn.Module):
    """Stands where a head expects the body."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        """Say what the body has said."""
        return self.output


class SharedBody(nn.Module):
    """A body and its heads."""

    def __init__(self, body: Any, heads: Mapping[str, Any], prefix: str) -> None:
        """Take a base model, and models without one.

        Args:
            body: A base model of transformers.
            heads: By name; models of transformers, whose own body is forgotten.
            prefix: What they call their body.
        """
        super().__init__()
        self.prefix = prefix
        self.body = body
        for head in heads.values():
            setattr(head, prefix, _Said())
        # Modules may not be called as a method is, such as `type`.
        self.heads = nn.ModuleDict({name_head(name): head for name, head in heads.items()})
        self.names = tuple(heads)
        known = _list_arguments(body)
        self._takes_cache = "use_cache" in known
        self._takes_types = "token_type_ids" in known

    @property
    def config(self) -> Any:
        """The body's."""
        return self.body.config

    def find_heads(self) -> dict[str, Any]:
        """Return the heads by their names."""
        return dict(zip(self.names, self.heads.values(), strict=True))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        spans: Sequence[slice],
        compute: Callable[[Sequence["HeadCall"]], Tensor],
    ) -> Tensor:
        """Let the body read all rows, and the heads what it says of theirs.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`.
            token_type_ids: `(B, T)`.
            spans: Which rows each head gets, at least one.
            compute: Calls every head once, in order; what it returns is returned.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_cache:
            inputs["use_cache"] = False
        if self._takes_types and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        output = self.body(**inputs)
        heads = zip(self.heads.values(), spans, strict=True)
        return compute([HeadCall(head, self.prefix, _cut(output, span)) for head, span in heads])

    # What is asked of a model that is to be trained.

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the body can recompute its activations."""
        return bool(self.body.supports_gradient_checkpointing)

    @property
    def activation_checkpointing_enable(self) -> Callable[..., None]:
        """What lets the body recompute its activations, under either of transformers' names."""
        new = getattr(self.body, "activation_checkpointing_enable", None)
        found: Callable[..., None] = new or self.body.gradient_checkpointing_enable
        return found

    def get_input_embeddings(self) -> nn.Module:
        """Return the body's."""
        found: nn.Module = self.body.get_input_embeddings()
        return found


def name_head(name: str) -> str:
    """Return what a head is called among a model's modules."""
    return f"{name}_head"


class HeadCall:
    """The forward pass of one head, as if it had a body."""

    def __init__(self, head: Any, prefix: str, output: Any) -> None:
        """Take what the body has said of its rows."""
        self.module = head
        self._stand_in = getattr(head, prefix)
        self._output = output

    def __call__(self, **inputs: Any) -> Any:
        """Run it."""
        self._stand_in.output = self._output
        try:
            return self.module(**inputs)
        finally:
            self._stand_in.output = None


def _cut(output: Any, span: slice) -> Any:
    """Keep some rows of what a base model says; caches and the like are left out."""
    kept = {key: value[span] for key, value in output.items() if torch.is_tensor(value)}
    return type(output)(**kept)


def _list_arguments(module: nn.Module) -> Any:
    return inspect.signature(type(module).forward).parameters


# --- loading --------------------------------------------------------------------------------------


def load_shared(
    section: ModelSection,
    facts: ModelFacts,
    zero: ZeroContext,
    heads: Mapping[str, Head],
    *,
    tokenizer: Any,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> LoadedModel:
    """Load one body under ZeRO, and put heads behind it.

    One head, which has the largest body or else predicts tokens, is loaded with the body as any
    model is; the others take their weights from the files where they are there in their shape.

    Args:
        section: Name and choices of the user.
        facts: What its config.json says.
        zero: Whether and how parameters are partitioned.
        heads: By the names of the tasks.
        tokenizer: For the size of the vocabulary.
        dtype: Of the weights that the forward pass uses.
        device: Of this rank.
        seed: Of random weights; the same on every rank.

    Raises:
        CheckpointError: Weights of the body are missing, unexpected or of another shape.
        ConfigError: transformers has no such heads for the architecture.

    Collective: every rank.
    Memory: as `load_model`, and the other heads whole, one after the other.
    """
    plans = _plan_all(section, facts, heads, len(tokenizer), device, dtype)
    carrier = _choose_carrier(plans, heads)
    loaded = load_model(
        section,
        facts,
        zero,
        auto_class=heads[carrier].auto_class,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        seed=seed,
        configure=heads[carrier].configure,
        has_new_head=heads[carrier].has_new_head,
    )
    whole: Any = loaded.module
    prefix = whole.base_model_prefix
    body = getattr(whole, prefix)
    headers = read_headers(facts.weight_files)
    num_rows = body.get_input_embeddings().num_embeddings
    notes = [f"{carrier}: {note}" for note in loaded.notes]
    models: dict[str, Any] = {}
    for name, head in heads.items():
        if name == carrier:
            models[name] = whole
            continue
        plan = plans[name]
        text, skeleton = plan.config.get_text_config(), plan.skeleton
        if text.vocab_size != num_rows:
            text.vocab_size = num_rows
            skeleton = build_skeleton(head.auto_class, plan.config, section, plan.attention, dtype)
        models[name], missing = _fill(skeleton, body, prefix, headers, seed)
        if missing and headers and not head.has_new_head:
            raise CheckpointError(
                f"--model {section.name}: has no head for task.parts.{name}"
                f" ({len(missing)} weights are missing from the files: {', '.join(missing[:4])});"
                f" use a model that was trained with one, or leave this task out"
            )
        notes += [f"{name}: new, from random weights: {', '.join(missing)}"] if missing else []
    shared = SharedBody(body, models, prefix)
    # Building skeletons told transformers that there is no ZeRO; other models may follow.
    with zero.building():
        zero.partition(shared)
    zero.check_partitioned(shared)
    return LoadedModel(shared, loaded.attention, notes)


def plan_shared_parameters(
    section: ModelSection, facts: ModelFacts, heads: Mapping[str, Head], num_tokens: int
) -> int:
    """Count the parameters of a body and its heads, without building any of them."""
    plans = _plan_all(section, facts, heads, num_tokens, torch.device("cpu"), torch.bfloat16)
    carrier = plans[_choose_carrier(plans, heads)].skeleton
    own = (
        count_parameters(plan.skeleton) - count_parameters(_get_body(plan.skeleton))
        for plan in plans.values()
    )
    return count_parameters(_get_body(carrier)) + sum(own)


def _plan_all(
    section: ModelSection,
    facts: ModelFacts,
    heads: Mapping[str, Head],
    num_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Plan]:
    plans: dict[str, Plan] = {}
    problems: list[str] = []
    for name, head in heads.items():
        try:
            plan = plan_model(
                section, facts, head.auto_class, num_tokens, head.configure, device, dtype
            )
            _check_kind(name, head, plan, section)
            plans[name] = plan
        except BigftError as error:
            problems += [f"task.parts.{name}: {problem}" for problem in list_problems(error)]
    if problems:
        raise_together(ConfigError, problems)
    bodies = {type(_get_body(plan.skeleton)).__name__ for plan in plans.values()}
    if len(bodies) > 1:
        raise ConfigError(
            f"--task multitask: {section.name} has another body for each task"
            f" ({', '.join(sorted(bodies))}), so that they cannot share one; use another model, or"
            " train one task after the other"
        )
    return plans


def _check_kind(name: str, head: Head, plan: Plan, section: ModelSection) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    is_encoder = find_class(AutoModelForMaskedLM, plan.config) is not None
    is_decoder = getattr(plan.config, "is_decoder", False) or not is_encoder
    if head.auto_class is AutoModelForCausalLM and not is_decoder:
        raise ConfigError(
            f"--model {section.name} is an encoder: it sees the tokens that causal_lm would predict"
            " from those before. Use masked_lm for this task, or a decoder"
        )
    if plan.config.is_encoder_decoder or _get_body(plan.skeleton) is None:
        raise ConfigError(
            f"--model {section.name} ({type(plan.skeleton).__name__}) has no body that several"
            " heads can share; use an encoder (BERT) or a decoder (Llama)"
        )
    if any(True for _ in _list_tables(plan.skeleton)):
        raise ConfigError(
            f"--model {section.name}: {type(plan.skeleton).__name__} keeps tables outside of its"
            " body, which bigft cannot build; use another model"
        )


def _get_body(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, None)


def _list_tables(skeleton: Any) -> list[str]:
    prefix = f"{skeleton.base_model_prefix}."
    return [name for name, _ in skeleton.named_buffers() if not name.startswith(prefix)]


def _choose_carrier(plans: Mapping[str, Plan], heads: Mapping[str, Head]) -> str:
    """Choose whose model is loaded as a whole: heads for tokens are worth most."""

    def rank(name: str) -> tuple[int, bool]:
        return count_parameters(_get_body(plans[name].skeleton)), not heads[name].has_new_head

    return max(plans, key=rank)


@torch.no_grad()
def _fill(
    skeleton: Any, body: Any, prefix: str, headers: Mapping[str, Header], seed: int
) -> tuple[Any, list[str]]:
    """Give a head without a body its weights: those of the files, else random ones.

    Returns:
        The head, and what is new of it.
    """
    places = rename_all(skeleton, headers)
    num_rows = body.get_input_embeddings().num_embeddings
    tied = skeleton.get_expanded_tied_weights_keys(all_submodels=True)
    setattr(skeleton, prefix, _Said())
    wanted = dict(skeleton.named_parameters(remove_duplicate=False))
    for name, meta in wanted.items():
        # What is tied stays the body's own: no head begins it anew.
        shape = (0, *meta.shape[1:]) if name in tied else meta.shape
        _put(skeleton, name, nn.Parameter(torch.empty(shape, dtype=meta.dtype)))
    torch.manual_seed(seed)
    skeleton.initialize_weights()
    missing = []
    for name in wanted.keys() - tied.keys():
        parameter, found = skeleton.get_parameter(name), places.get(name)
        size = headers[found].shape if found is not None else None
        if found is not None and size and _fits(size, tuple(parameter.shape), num_rows):
            value = read_tensor(headers[found], found)
            parameter[: len(value)] = value
            if len(value) < len(parameter):
                # As the embeddings of new tokens begin.
                parameter[len(value) :] = value.float().mean(0)
        else:
            missing.append(name)
    for name, source in tied.items():
        if not name.startswith(f"{prefix}."):
            inner = source.removeprefix(f"{prefix}.")
            owner = body if inner != source else skeleton
            _put(skeleton, name, owner.get_parameter(inner))
    return skeleton, sorted(missing)


def _fits(size: tuple[int, ...], wanted: tuple[int, ...], num_rows: int) -> bool:
    """Whether a tensor of the files has a shape, or had it before the vocabulary grew."""
    is_smaller = wanted[0] == num_rows and size[0] < num_rows
    return size[1:] == wanted[1:] and (size[0] == wanted[0] or is_smaller)


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, parameter)
