from __future__ import annotations

import numpy as np
import pytest
import torch

from wsss_nb.coverage import PartCoverage, coverage


def test_coverage_by_hand():
    mask = np.array([[0, 0, 3, 3, 3, 3, 255]])
    part = np.array([[0, 0, 2, 2, 1, 1, 2]])
    found = np.array([[0, 3, 3, 3, 3, 1, 3]])
    assert coverage(found, mask, part) == {"head": 1.0, "body": 0.5, "background": 0.5}
    no_head = coverage(found[:, 4:6], mask[:, 4:6], part[:, 4:6])
    assert np.isnan(no_head["head"])
    assert np.isnan(no_head["background"])
    assert no_head["body"] == 0.5


def test_part_coverage_pools_pixels_not_images():
    metric = PartCoverage()
    metric.update(np.array([[1, 1, 1]]), np.array([[1, 1, 1]]), np.array([[2, 2, 2]]))
    metric.update(torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[2]]))
    assert metric.compute()["head"] == pytest.approx(3 / 4)


def test_coverage_refuses_other_shapes_and_parts():
    zeros = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"prediction: expected the shape of mask \(2, 3\), got \(3, 2\)"):
        coverage(zeros.T, zeros, zeros)
    with pytest.raises(ValueError, match=r"part: expected the shape of mask \(2, 3\), got \(2, 2\)"):
        coverage(zeros, zeros, zeros[:, :2])
    with pytest.raises(ValueError, match="part: expected 0, 1 or 2, got 3"):
        coverage(zeros, zeros, zeros + 3)
