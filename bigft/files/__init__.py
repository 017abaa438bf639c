"""Readers of file formats that other people wrote: they believe nothing and run nothing."""
