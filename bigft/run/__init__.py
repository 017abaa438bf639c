"""The composition of all settings: flags, recipe and DeepSpeed JSON in, `Resolved` out."""
