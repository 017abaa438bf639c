"""Ranks: opening and closing the world, and the few collectives bigft uses itself."""
