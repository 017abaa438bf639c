"""What the model learns: how an example becomes a row and a batch becomes a loss."""
