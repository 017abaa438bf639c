"""Committed checkpoints, and one Hugging Face folder out of their shards."""
