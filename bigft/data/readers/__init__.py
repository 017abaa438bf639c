"""One module per kind of file: a path in, raw rows with their places out."""
