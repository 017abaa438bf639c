"""What the ranks send one another in an optimizer step, collective by collective.

    settings --list_flows--> Flow, Flow, ... --time_flow (bigft.planner.links)--> seconds

Held against DeepSpeed 0.19.8; `tests/integration/test_traffic.py` counts what real runs send. Two
things differ from what is written about ZeRO (Rajbhandari et al., arXiv 1910.02054):

- Stages 1 and 2 add gradients up on all ranks, which sends twice as much as giving each rank its
  own part; `use_multi_rank_bucket_allreduce: false` sends each part to its owner.
- Stage 3 does not gather weights again in the backward pass that `stage3_max_reuse_distance` has
  kept since the forward pass; in a model that is smaller than a third of it, none.

With hpZ (Wang et al., ZeRO++, arXiv 2306.10209) each rank keeps a second, larger part of the
weights, so that a group of ranks has all of them: once gathered from all ranks, weights come from
the group until the next step changes them.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "reduce", "all_to_all"]

_QUANTIZED_WEIGHT = 1.0
"""Bytes; the scale of about 8,000 of them is left out."""

_QUANTIZED_GRADIENT = 0.5


@dataclass(frozen=True)
class Sharing:
    """How the ranks share weights and gradients, as far as collectives go by it.

    Numbers are elements, if nothing else is said.
    """

    stage: int
    weights: int
    trained: int
    weight_bytes: int
    gradient_bytes: int
    """Of a gradient on its way, whatever it is summed in."""

    persistent: int = 0
    """Weights that stage 3 keeps whole."""

    kept: int = 0
    """Weights that the backward pass finds where the forward pass left them, in stage 3."""

    reduction: Literal["scatter", "all", "owner"] = "scatter"
    """What happens to gradients in stages 1 and 2."""

    group: int = 1
    """Ranks that have all weights together, beside all ranks (hpZ); 1: none."""

    quantizes_weights: bool = False
    quantizes_gradients: bool = False
    gathers: int = 1
    """Calls that gather all weights once."""

    small_gathers: int = 0
    """Calls that gather the persistent weights once."""

    reductions: int = 1
    """Calls that sum all gradients once."""


@dataclass(frozen=True)
class Flow:
    """One kind of collective of a step."""

    what: str
    kind: Kind
    calls: int
    num_bytes: float
    """Of all calls: of the whole that is gathered or added up."""

    ranks: int
    """Of a group."""

    hosts: int = 1
    """That a group is on."""

    shares: int = 1
    """Ranks of a host that have a group of their own for a part of it."""

    @property
    def sent(self) -> float:
        """Bytes that a rank sends, and receives: in a ring, all parts but one."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * self.num_bytes * (self.ranks - 1) / self.ranks / self.shares

    @property
    def sent_between(self) -> float:
        """Bytes that leave a host, and reach it.

        The ring passes each host once, so that one rank of it sends outside what any rank sends.
        Of an exchange of all with all, what is for other hosts goes out.
        """
        if self.hosts == 1:
            return 0.0
        if self.kind == "all_to_all":
            return self.num_bytes * (self.hosts - 1) / self.hosts
        return self.sent

    @property
    def least_between(self) -> float:
        """Bytes that have to leave a host, however clever the way: no part twice."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * self.num_bytes * (self.hosts - 1) / self.hosts


def list_flows(sharing: Sharing, micro_batches: int, ranks: int, local: int) -> tuple[Flow, ...]:
    """List the collectives of a step; none where there is one rank.

    Args:
        sharing: Who has what.
        micro_batches: Of a step.
        ranks: In all.
        local: Of them, on each host.
    """
    if ranks == 1:
        return ()
    hosts = max(1, ranks // local)
    flows = [*_list_weights(sharing, micro_batches, ranks, local)]
    flows += _list_gradients(sharing, micro_batches, ranks, hosts)
    return tuple(flow for flow in flows if flow.num_bytes)


def _list_weights(s: Sharing, n: int, ranks: int, local: int) -> list[Flow]:
    hosts = max(1, ranks // local)
    size = _QUANTIZED_WEIGHT if s.quantizes_weights else s.weight_bytes

    def gather(what: str, passes: int, numel: int, calls: int, *, inside: bool = False) -> Flow:
        among = s.group if inside else ranks
        across = max(1, s.group // local) if inside else hosts
        return Flow(what, "all_gather", passes * calls, passes * numel * size, among, across)

    if s.stage == 0:
        return []
    if s.stage < 3:
        numel = s.trained * s.weight_bytes
        return [Flow("new weights", "all_gather", s.small_gathers or 1, numel, ranks, hosts)]
    whole = s.weights - s.persistent
    again = max(0, whole - s.kept)
    calls_again = -(-s.gathers * again // max(1, whole))
    once = Flow(
        *("new weights that stay whole", "all_gather", s.small_gathers),
        *(s.persistent * s.weight_bytes, ranks, hosts),
    )
    if s.group <= 1 or s.group >= ranks:
        return [
            gather("weights, forward", n, whole, s.gathers),
            gather("weights, backward", n, again, calls_again),
            once,
        ]
    return [
        gather("weights, first pass", 1, whole, s.gathers),
        gather("weights, forward again", n - 1, whole, s.gathers, inside=True),
        gather("weights, backward", n, again, calls_again, inside=True),
        once,
    ]


def _list_gradients(s: Sharing, n: int, ranks: int, hosts: int) -> list[Flow]:
    # Below stage 2 they are summed on each rank first.
    rounds = n if s.stage >= 2 else 1
    size = s.gradient_bytes
    kind: Kind = "reduce_scatter"
    if s.stage == 0:
        kind = "all_reduce"
    elif s.stage < 3:
        kinds: dict[str, Kind] = {"scatter": kind, "all": "all_reduce", "owner": "reduce"}
        kind = kinds[s.reduction]
    calls = rounds * s.reductions
    if s.stage < 3 or not s.quantizes_gradients or hosts == 1:
        return [Flow("gradients", kind, calls, rounds * s.trained * size, ranks, hosts)]
    local = ranks // hosts
    moved = rounds * s.trained * _QUANTIZED_GRADIENT
    return [
        Flow("gradients inside hosts", "all_to_all", calls, moved, local),
        Flow("gradients between hosts", "all_to_all", calls, moved, hosts, hosts, shares=local),
    ]
