"""As in DeepSpeed."""
