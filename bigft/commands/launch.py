"""`bigft launch`: start a run on several hosts, watch it, and start it again after a crash."""

from bigft.config.options import LaunchOptions, read_options
from bigft.config.request import Request
from bigft.errors import ConfigError


def main(request: Request) -> None:
    """Start what stands behind `--` on every host."""
    options = read_options(request, LaunchOptions)
    raise ConfigError(f"bigft launch: under construction {options}")
