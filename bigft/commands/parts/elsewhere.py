"""`bigft launch --render`: the options of a launch as what a renderer wants to know."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigft.config.options import LaunchOptions
from bigft.errors import ConfigError, raise_together
from bigft.launch.environment import explain_name
from bigft.launch.hostfile import Host
from bigft.launch.render.build import RENDERERS
from bigft.launch.render.start import Start


def render_start(
    options: LaunchOptions, words: Sequence[str], hosts: Sequence[Host], output_dir: str
) -> str:
    """Return the script or manifest that `--render` asks for.

    Args:
        options: Of the launch.
        words: The command line of bigft that is to be started.
        hosts: Of the hostfile, or this host with its ranks.
        output_dir: From the settings; empty: they say nothing of it.

    Raises:
        ConfigError, LaunchError: The run cannot be started so; all reasons are listed.
    """
    elsewhere = options.elsewhere
    folder = Path.cwd()
    if problems := [*_find_problems(options, words, output_dir, folder)]:
        raise_together(ConfigError, problems)
    in_container = elsewhere.render == "kubernetes"
    start = Start(
        words=words,
        output_dir=output_dir,
        hosts=hosts if options.hostfile else (),
        nodes=elsewhere.nodes,
        ranks_per_node=hosts[0].slots,
        folder=str(folder),
        env=tuple(dict.fromkeys(options.env)),
        python="python" if in_container else sys.executable,
        image=elsewhere.image,
        claim=elsewhere.claim,
        on_gpus=os.environ.get("DS_ACCELERATOR") != "cpu",
    )
    return RENDERERS[str(elsewhere.render)](start)


def _find_problems(
    options: LaunchOptions, words: Sequence[str], output_dir: str, folder: Path
) -> Iterator[str]:
    elsewhere = options.elsewhere
    if not output_dir:
        yield (
            "--output_dir: not given behind `--`; a run that is started again has to find its"
            " checkpoints: add --output_dir FOLDER"
        )
    elif elsewhere.render == "kubernetes" and not (folder / output_dir).is_relative_to(folder):
        yield (
            f"--output_dir {output_dir}: outside of {folder}, which is all that --claim"
            f" {elsewhere.claim} holds of it; choose a folder inside"
        )
    if options.hostfile and elsewhere.nodes > 1:
        yield f"--nodes {elsewhere.nodes}: the hostfile says which hosts; drop one of them"
    if elsewhere.nodes > 1 and elsewhere.render in ("openmpi", "mpich"):
        yield f"--nodes {elsewhere.nodes}: mpirun wants names; give --hostfile"
    for name in options.env:
        if wrong := explain_name(name):
            yield f"--env {name!r}: {wrong}"
    for word in words:
        if not _is_text(word):
            yield f"{word!r}: not UTF-8, which scripts and manifests are; rename the file"


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
