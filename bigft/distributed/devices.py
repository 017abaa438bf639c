"""What the vendors say of their accelerators, and how much of it training reaches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceFacts:
    """One kind of accelerator."""

    peak: float
    """FLOP per second of dense bf16 (fp16 where there is no bf16) matrix products."""

    memory: float
    """Bytes, as it is sold."""

    memory_rate: float
    """Bytes per second, as it is sold."""

    pcie: float
    """Bytes per second each way to the host that copies reach."""

    peer: float
    """Bytes per second each way to another one of the same host that collectives reach."""

    sustained: float
    """Share of the peak that the matrix products of a training step reach: 0.91 was measured on an
    RTX 4090 (LLMQ, 150 of 165 TFLOPS), 0.61 on an H100 (600 of 989), whose clock falls under load;
    others are set to that of their kind, desk or data centre."""


_PCIE3, _PCIE4, _PCIE5 = 12e9, 25e9, 55e9


def _of(
    peak: float, memory: float, rate: float, pcie: float, peer: float = 0, share: float = 0.61
) -> DeviceFacts:
    """Make facts from TFLOPS, GB and GB/s."""
    # Without a link of their own they talk through the host.
    reached = peer * 0.8e9 if peer else pcie * 0.6
    return DeviceFacts(peak * 1e12, memory * 1e9, rate * 1e9, pcie, reached, share)


DEVICES = {
    "H200": _of(989, 141, 4800, _PCIE5, 450),
    "H100 PCIe": _of(756, 80, 2000, _PCIE5),
    "H100": _of(989, 80, 3350, _PCIE5, 450),
    "H800": _of(989, 80, 3350, _PCIE5, 200),
    "B200": _of(2250, 180, 8000, _PCIE5, 900),
    "A100-SXM4-40GB": _of(312, 40, 1555, _PCIE4, 300),
    "A100-PCIE-40GB": _of(312, 40, 1555, _PCIE4),
    "A100": _of(312, 80, 2039, _PCIE4, 300),
    "A800": _of(312, 80, 2039, _PCIE4, 200),
    "A10G": _of(70, 24, 600, _PCIE4),
    "A10": _of(125, 24, 600, _PCIE4),
    "A40": _of(150, 48, 696, _PCIE4),
    "L40S": _of(362, 48, 864, _PCIE4),
    "L40": _of(181, 48, 864, _PCIE4),
    "L4": _of(121, 24, 300, _PCIE4 / 2),
    "RTX 6000 Ada": _of(364, 48, 960, _PCIE4, share=0.9),
    "RTX A6000": _of(155, 48, 768, _PCIE4, share=0.9),
    "RTX 5090": _of(210, 32, 1792, _PCIE5, share=0.9),
    "RTX 4090": _of(165, 24, 1008, _PCIE4, share=0.9),
    "RTX 3090": _of(71, 24, 936, _PCIE4, share=0.9),
    "V100": _of(125, 32, 900, _PCIE3, 150),
    "T4": _of(65, 16, 320, _PCIE3),
}
"""By a part of the device's name. Data sheets; PCIe 5 as measured on 8 H200 (55 GB/s), PCIe 4 at
80% of its 31 GB/s, NVLink at 80% of each way."""


def find_device(name: str) -> DeviceFacts | None:
    """Find the facts of a device by its name, the longest part that fits; None: not known."""
    wanted = name.lower()
    for part in sorted(DEVICES, key=len, reverse=True):
        if part.lower() in wanted:
            return DEVICES[part]
    return None
