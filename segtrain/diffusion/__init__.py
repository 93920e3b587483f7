"""Features of a latent diffusion model for segmentation heads. Its modules import torch freely.

All but `segmentor` know nothing of mmsegmentation.
"""
