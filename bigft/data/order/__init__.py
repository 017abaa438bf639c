"""Which rows are trained on, packed how, and in which order."""
