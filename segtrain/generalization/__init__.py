"""Options of a training that make a segmentation network generalize to unseen targets."""
