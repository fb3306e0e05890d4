from __future__ import annotations

import numpy as np

from vmr_ray.schema import Annotation
from vmr_ray.training.prepare import split


def test_split_is_by_video_and_stable():
    groups = {f"v{i}": [Annotation(f"v{i}", "q", ((0.0, 1.0),))] for i in range(20)}
    train, val = split(groups, 0.1, seed=1)
    assert len(val) == 2 and not set(train) & set(val) and len(train) == 18
    assert split(dict(reversed(list(groups.items()))), 0.1, seed=1)[1].keys() == val.keys()
    assert split(groups, 0.1, seed=2)[1].keys() != val.keys()
    assert np.isclose(sum(map(len, split(groups, 0.5, seed=3)[1].values())), 10)
