"""Architectures and machines for tests of the planner, made by hand."""

from bigft.planner.architecture.weights import Architecture, Block, Stack, Weight
from bigft.planner.machine import Machine, Rate, Rates


def make_block(hidden: int, inner: int, heads: int, groups: int = 1, **changes) -> Block:
    """A layer of a Llama; `groups` heads share keys and values."""
    shared = hidden // groups
    shapes = {"q": (hidden, hidden), "k": (shared, hidden), "v": (shared, hidden)}
    shapes |= {"o": (hidden, hidden), "gate": (inner, hidden), "up": (inner, hidden)}
    shapes |= {"down": (hidden, inner), "norm1": (hidden,), "norm2": (hidden,)}
    weights = tuple(Weight(name, shape) for name, shape in shapes.items())
    fields = {"weights": weights, "hidden": hidden, "heads": heads}
    fields |= {"key_value_heads": heads // groups}
    fields |= {"head_dim": hidden // max(1, heads), "inner": inner, "is_gated": True}
    return Block(**{**fields, **changes})


def make_llama(hidden=64, inner=128, layers=2, heads=4, vocabulary=256, **changes) -> Architecture:
    """A decoder with an untied head."""
    block = make_block(hidden, inner, heads, **changes)
    outer = (Weight("embed", (vocabulary, hidden)), Weight("head", (vocabulary, hidden)))
    inside = tuple(weight for _ in range(layers) for weight in block.weights)
    return Architecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        weights=(*outer, *inside, Weight("norm", (hidden,))),
        stacks=(Stack("decoder", (block,) * layers),),
        hidden=hidden,
        vocabulary=vocabulary,
        is_tied=False,
        head_outputs=vocabulary,
    )


def make_matrices(parameters: float, hidden: int, layers: int) -> Architecture:
    """So many parameters, all in matrices of layers, without attention and head."""
    weight = Weight("matrix", (int(parameters / layers / hidden), hidden))
    block = make_block(hidden, 1, 0, weights=(weight,), head_dim=0)
    return Architecture(
        model_type="matrices",
        class_name="Matrices",
        weights=(weight,) * layers,
        stacks=(Stack("decoder", (block,) * layers),),
        hidden=hidden,
        vocabulary=1,
        is_tied=True,
        head_outputs=0,
    )


def make_rates(**speeds: float) -> Rates:
    """Rates of an RTX 4090 on a desktop, where nothing else is said."""
    usual = {"matrix": 150e12, "device_memory": 900e9, "host_memory": 65e9, "pcie": 25e9}
    usual |= {"disk_read": 7e9, "disk_write": 6e9, "network": 1.2e9, "peer": 15e9}
    return Rates(**{name: Rate(rate, "given") for name, rate in {**usual, **speeds}.items()})


def make_machine(ranks=1, hosts=1, device="cuda", cores=16, **speeds: float) -> Machine:
    """A desktop, or several."""
    return Machine(
        device=device,
        device_name="made up",
        device_bytes=24 * 10**9,
        ranks_per_host=ranks,
        hosts=hosts,
        host_bytes=128 * 10**9,
        shared_memory_bytes=64 * 10**9,
        pinned_bytes=None,
        disk_bytes=None,
        nvme_bytes=None,
        cores=cores,
        rates=make_rates(**speeds),
    )
