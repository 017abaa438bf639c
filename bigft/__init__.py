"""Full-parameter fine-tuning of models that are too big for the GPU at hand."""

__version__ = "0.1.0"
