"""The examples in launch_scripts/: what is rendered for two hosts with eight GPUs each."""

from dataclasses import replace

from bigft.launch.hostfile import Host
from bigft.launch.render.build import RENDERERS
from bigft.launch.render.start import Start

_WORDS = "train --config ds_configs/zero3.json --model Qwen/Qwen3-8B --data mine.jsonl"

_START = Start(
    words=[*_WORDS.split(), "--output_dir", "runs/mine"],
    output_dir="runs/mine",
    nodes=2,
    ranks_per_node=8,
    env=("HF_TOKEN",),
)
_FILES = {
    "slurm.sbatch": "slurm",
    "torchrun.sh": "torchrun",
    "mpirun.sh": "openmpi",
    "kubernetes.yaml": "kubernetes",
}
_WITH_NAMES = ("torchrun", "openmpi")


def render_examples() -> dict[str, str]:
    """Return name and text of every file."""
    hosts = (Host("worker-1", 8), Host("worker-2", 8))
    named = replace(_START, hosts=hosts)
    return {
        file: RENDERERS[name](named if name in _WITH_NAMES else _START)
        for file, name in _FILES.items()
    }
