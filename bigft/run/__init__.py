"""The composition of all settings: flags, recipe and DeepSpeed JSON in, one frozen `Resolved` out."""
