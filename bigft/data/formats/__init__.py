"""One module per kind of example that data files hold."""
