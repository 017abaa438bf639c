"""From examples to tokens, each marked as learned or only read."""
