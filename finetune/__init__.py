"""Adapt the diffusion model to the label maps and the look of a labelled source.

`README.md` names the files in reading order.
"""
