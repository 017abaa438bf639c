"""What the straight line of a training run is put together from."""
