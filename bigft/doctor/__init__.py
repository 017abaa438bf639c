"""Whether hosts are ready for a run: what is missing, why it matters, and the command that repairs it."""
