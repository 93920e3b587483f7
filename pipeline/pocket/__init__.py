"""Pocket City: a small seeded street world with exact labels, rendered in many looks."""
