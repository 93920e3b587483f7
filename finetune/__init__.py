"""Adapt the diffusion model to the layouts and the look of a labelled source.

`vae.py` and `prior.py` train a small base model from scratch, `unet.py` makes U_S of U_P, and
`controlnet.py` trains the semantic ControlNet on the frozen U_S.
"""
