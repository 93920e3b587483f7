"""What makes a segmentation network hold up on unseen targets, as options of its training."""
