"""Small data sets for every kind of task, made from the sources of the standard library."""
