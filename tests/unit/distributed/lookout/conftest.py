"""A centre on this machine, and hosts that call it."""

from lookout_site import site

__all__ = ["site"]
