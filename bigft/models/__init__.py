"""From a name to a module whose parameters are already partitioned."""
