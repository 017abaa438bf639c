"""Whether this install computes what plain torch does, on the hardware it is on."""
