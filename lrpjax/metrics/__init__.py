"""Numbers that judge an explanation: faithfulness, localisation, complexity, robustness, sanity.

Every function takes arrays and plain callables, `f(x) -> scores` and `explain(x) -> relevance`, with the
batch first, so that explanations of this package and of any other are judged alike.

**Regions.** Flipping and sensitivity-n work on regions, given as an integer label for every element of a
sample. `patches` makes square ones; superpixels or tokens are just other labels. With `regions=None` every
element is a region of its own, and an integer p stands for `patches(x.shape, p)`.

**Fill-ins.** What a flipped element becomes is an array that broadcasts to `x`: a number, or one of
`channel_mean`, `uniform_noise` and `blur`, or whatever is thought neutral.

**Compilation.** All functions are compiled by `jax.jit`, once for each callable and shape, and can be
called under an outer `jax.jit`. So define a callable once, not anew for every batch, and keep it pure: do
not change what it closes over. Parameters that change belong into a pytree: `jax.tree_util.Partial(apply,
params)`, or any callable that is a pytree, is not compiled again for new parameters. Perturbed copies of
`x` are evaluated `batch` at a time, so memory does not grow with their number.

None of these numbers shows that an explanation is *right*: there is no ground truth of relevance outside of
constructed data. Each docstring says what its number does not show.
"""

from lrpjax.metrics.agreement import pearson, spearman, ssim
from lrpjax.metrics.faithfulness import (
    Curve,
    abpc,
    aopc,
    completeness_gap,
    faithfulness_correlation,
    flipping,
    sensitivity_n,
)
from lrpjax.metrics.maps import complexity, mass_accuracy, pointing_game, rank_accuracy, sparseness
from lrpjax.metrics.methods import Robustness, randomisation, robustness
from lrpjax.metrics.perturb import blur, channel_mean, patches, uniform_noise

__all__ = [
    "Curve",
    "Robustness",
    "abpc",
    "aopc",
    "blur",
    "channel_mean",
    "completeness_gap",
    "complexity",
    "faithfulness_correlation",
    "flipping",
    "mass_accuracy",
    "patches",
    "pearson",
    "pointing_game",
    "randomisation",
    "rank_accuracy",
    "robustness",
    "sensitivity_n",
    "sparseness",
    "spearman",
    "ssim",
    "uniform_noise",
]
