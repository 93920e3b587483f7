"""Networks and tensors: the part of generation that imports torch."""
