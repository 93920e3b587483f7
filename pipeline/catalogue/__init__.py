"""How a dataset arrives: what it is, fetching, unpacking and checking it."""
