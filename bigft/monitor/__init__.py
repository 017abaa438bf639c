"""What people and files see of a run: meters and sinks. Watches, never steers."""
