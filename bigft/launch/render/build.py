"""The table of what can be rendered."""

from collections.abc import Callable, Mapping

from bigft.launch.render.kubernetes import render_kubernetes
from bigft.launch.render.mpirun import render_mpich, render_openmpi
from bigft.launch.render.slurm import render_slurm
from bigft.launch.render.start import Start
from bigft.launch.render.torchrun import render_torchrun

RENDERERS: Mapping[str, Callable[[Start], str]] = {
    "slurm": render_slurm,
    "torchrun": render_torchrun,
    "openmpi": render_openmpi,
    "mpich": render_mpich,
    "kubernetes": render_kubernetes,
}
"""Name of a starter -> what makes its script."""
