"""From the order to batches: what a rank reads at each step, and how it goes on after a stop."""
