"""Scores of a model on held-out data, weighted by tokens."""
