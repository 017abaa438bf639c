"""One file per verb; the only readers of a whole `Run`."""
