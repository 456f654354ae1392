"""What the properties share: how many programs, and how results are compared."""

import hypothesis
import numpy as np

NIGHTLY = 50
"""How many times as many programs `--nightly` tries."""


def is_nightly():
    return hypothesis.settings.get_current_profile_name() == "nightly"


def examples(number):
    """Settings for so many programs in the suite's size."""
    return hypothesis.settings(max_examples=number * (NIGHTLY if is_nightly() else 1))


def close(found, wanted, tolerance=1e-9, scale=None):
    """Fails unless two arrays agree to `tolerance` of `scale`, which is the largest |wanted| if it is not given."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    scale = max(1e-3, np.abs(wanted).max(initial=0.0)) if scale is None else scale
    np.testing.assert_allclose(found / scale, wanted / scale, rtol=0, atol=tolerance)
