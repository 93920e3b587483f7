"""Backbones beside mmsegmentation's own: plain PyTorch that knows nothing of mmsegmentation."""
