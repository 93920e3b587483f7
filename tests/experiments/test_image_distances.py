"""The sheet of nearest training images."""

import numpy as np

from experiments import image_distances as d


def test_the_nearest_training_image_stands_beside():
    images = [np.full((2, 3, 3), v, np.uint8) for v in (10, 20)]
    others = [np.full((2, 3, 3), v, np.uint8) for v in (90, 11, 19)]
    features = np.array([[10.0], [20.0]])
    sheet = d.neighbour_sheet(images, features, others, np.array([[90.0], [11.0], [19.0]]))
    assert sheet.shape == (4, 6, 3)
    assert sheet[0, 0, 0] == 10 and sheet[0, 3, 0] == 11
    assert sheet[2, 0, 0] == 20 and sheet[2, 3, 0] == 19
