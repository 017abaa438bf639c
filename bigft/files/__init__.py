"""Readers of files that others wrote, or that a crash cut off: they believe and run nothing."""
