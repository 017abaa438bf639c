"""Optional cleaning of examples, between reading and tokenising."""
