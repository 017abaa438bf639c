"""How the examples of a task become rows, and rows a batch: one module per kind of task."""
