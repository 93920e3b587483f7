"""Quality of a labelled dataset: scores of samples, filters of labels. Numpy but for networks."""
