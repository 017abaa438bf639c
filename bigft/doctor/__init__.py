"""Whether hosts are ready for a run: what is missing, why it matters, and what repairs it."""
