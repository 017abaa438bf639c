"""Rates of memory, of the link to a GPU, of matrix products and of the optimizer's step."""

import torch

from bigft.optim.host import HostAdamW, Region
from bigft.optim.reference import Rates
from bigft.probe.timing import SECONDS, Reading, measure_rate

_HOST_BUFFER = 64 << 20
"""fp32 elements of all three buffers together: 256 MB, more than caches hold."""

_DEVICE_BUFFER = 256 << 20
_PCIE_BUFFER = 64 << 20
_STEP_PARAMETERS = 1 << 24


def measure_host_memory(seconds: float = SECONDS) -> Reading:
    """Measure bytes per second that all cores read and write, adding two arrays into a third."""
    one, other, target = torch.ones(3, _HOST_BUFFER // 3).unbind()
    return measure_rate(
        lambda: torch.add(one, other, out=target), 3 * one.numel() * 4, seconds=seconds
    )


def measure_matrix(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> Reading:
    """Measure FLOP per second of products of the size that a layer has, in one format."""
    tokens, width, inner = (8192, 8192, 8192) if device.type == "cuda" else (1024, 1024, 4096)
    left = torch.randn(tokens, width, device=device, dtype=dtype)
    right = torch.randn(inner, width, device=device, dtype=dtype)
    return measure_rate(
        lambda: torch.nn.functional.linear(left, right),
        2.0 * tokens * width * inner,
        seconds=seconds,
        wait=lambda: _wait(device),
    )


def measure_device_memory(device: torch.device, seconds: float = SECONDS) -> Reading:
    """Measure bytes per second that a copy inside a GPU reads and writes."""
    source = torch.ones(_DEVICE_BUFFER // 4, device=device)
    target = torch.empty_like(source)
    return measure_rate(
        lambda: target.copy_(source),
        2 * source.numel() * 4,
        seconds=seconds,
        wait=lambda: _wait(device),
    )


def measure_pcie(device: torch.device, seconds: float = SECONDS) -> tuple[Reading, Reading]:
    """Measure bytes per second from pinned host memory to a GPU, and back."""
    host = torch.ones(_PCIE_BUFFER // 4, pin_memory=True)
    there = torch.empty_like(host, device=device)
    size = host.numel() * 4
    ways = (lambda: there.copy_(host, non_blocking=True), lambda: host.copy_(there, True))
    to, back = (
        measure_rate(way, size, seconds=seconds / 2, wait=lambda: _wait(device)) for way in ways
    )
    return to, back


def measure_host_step(name: str, seconds: float = SECONDS) -> Reading:
    """Measure parameters per second that the native step of AdamW updates with all cores.

    Args:
        name: `adamw` or `adamw_8bit`.
        seconds: Limit.

    Raises:
        LaunchError: The native step is not there and cannot be built.
    """
    generator = torch.Generator().manual_seed(0)
    size, is_8bit = _STEP_PARAMETERS, name == "adamw_8bit"
    weights = (torch.randn(size, generator=generator) * 0.02).bfloat16()
    optimizer = HostAdamW(
        [{"params": [weights]}],
        lr=1e-5,
        betas=(0.9, 0.999),
        eps=1e-8,
        moment_bits=8 if is_8bit else 32,
    )
    state = optimizer.lay_out(weights, [Region("probe", 0, size, 0, is_coded=is_8bit)])
    # Random bits would be slow, subnormal numbers.
    state.gradient = (torch.randn(size, generator=generator) * 1e-3).bfloat16()
    rates = Rates(1e-5, (0.9, 0.999), 1e-8, 0.01, 2)
    threads = torch.get_num_threads()
    return measure_rate(lambda: state.update(rates, 1.0, threads), size, seconds=seconds)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
