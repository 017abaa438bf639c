"""Hosts and how ranks are started on them. Renders and checks; the engine starts them."""
