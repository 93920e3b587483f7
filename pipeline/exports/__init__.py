"""How a dataset leaves: the layouts that other programs read."""
