"""The state of a training run as files: named fragments of parameters, for any number of ranks."""
