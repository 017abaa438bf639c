"""What this machine really does: its links, its units, and one step of a slice of the model.

Everything is limited in time, leaves no file behind and comes back as plain numbers, which the
planner keeps for later plans.
"""
