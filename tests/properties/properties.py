"""What the properties share: how many programs, and how results are compared."""

import functools
import itertools

import hypothesis
import jax
import numpy as np

NIGHTLY = 50
"""How many times as many programs `--nightly` tries."""

KEPT = 50
"""Of so many programs, at most, what was compiled is kept."""


def is_nightly():
    return hypothesis.settings.get_current_profile_name() == "nightly"


def examples(number):
    """A test with so many programs in the suite's size. What was compiled for many of them is let go now and then, for
    XLA crashes when thousands of compiled programs are kept."""
    settings, numbers = (
        hypothesis.settings(max_examples=number * (NIGHTLY if is_nightly() else 1)),
        itertools.count(1),
    )

    def decorated(test):
        one = test.hypothesis.inner_test

        @functools.wraps(one)
        def run(*args, **kwargs):
            if next(numbers) % KEPT == 0:
                jax.clear_caches()
            one(*args, **kwargs)

        test.hypothesis.inner_test = run
        return settings(test)

    return decorated


def close(found, wanted, tolerance=1e-9, scale=None):
    """Fails unless two arrays agree to `tolerance` of `scale`, which is the largest |wanted| if it is not given."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    scale = max(1e-3, np.abs(wanted).max(initial=0.0)) if scale is None else scale
    np.testing.assert_allclose(found / scale, wanted / scale, rtol=0, atol=tolerance)
