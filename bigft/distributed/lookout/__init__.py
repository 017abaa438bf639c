"""Hosts that look after each other: who is silent, who stands still; nothing heavy, no torch."""
