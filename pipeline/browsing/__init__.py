"""The inside of pipeline/browse.py."""
