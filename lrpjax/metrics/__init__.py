"""Numbers that judge an explanation: faithfulness, localisation, complexity, robustness, sanity.

Every function takes arrays and plain callables, `f(x) -> scores` and `explain(x) -> relevance`, with the
batch first, so that explanations of this package and of any other are judged alike.

**Regions.** Flipping and sensitivity-n work on regions, given as an integer label for every element of a
sample. `patches` makes square ones; superpixels or tokens are just other labels. With `regions=None` every
element is a region of its own, and an integer p stands for `patches(x.shape, p)`.

**Fill-ins.** What a flipped element becomes is an array that broadcasts to `x`: a number, or one of
`channel_mean`, `uniform_noise` and `blur`, or whatever is thought neutral; in curves and sets of regions also a
function of x and of where it is replaced, as `LinearImputation`.

**Compilation.** All functions are compiled by `jax.jit`, once for each callable and shape, and can be
called under an outer `jax.jit`. So define a callable once, not anew for every batch, and keep it pure: do
not change what it closes over. Parameters that change belong into a pytree: `jax.tree_util.Partial(apply,
params)`, or any callable that is a pytree, is not compiled again for new parameters. Perturbed copies of
`x` are evaluated `batch` at a time, so memory does not grow with their number.

None of these numbers shows that an explanation is *right*: there is no ground truth of relevance outside of
constructed data. Each docstring says what its number does not show.
"""

from lrpjax.metrics.agreement import pearson, spearman, ssim
from lrpjax.metrics.axioms import Kept, completeness_gap, input_invariance, kept_share
from lrpjax.metrics.curves import Curve, abpc, aopc, flipping, irof, monotonicity, road, selectivity
from lrpjax.metrics.faithfulness import (
    consistency,
    faithfulness_correlation,
    infidelity,
    monotonicity_correlation,
    sensitivity_n,
    sufficiency,
)
from lrpjax.metrics.localisation import (
    attribution_localisation,
    mass_accuracy,
    pointing_game,
    rank_accuracy,
    roc_auc,
    top_k_intersection,
)
from lrpjax.metrics.perturb import LinearImputation, blur, channel_mean, patches, translate, uniform_noise
from lrpjax.metrics.sanity import class_contrast, efficient_mprt, random_logit, randomisation, smooth_mprt
from lrpjax.metrics.simplicity import complexity, effective_complexity, histogram_entropy, sparseness
from lrpjax.metrics.stability import (
    Robustness,
    continuity,
    local_lipschitz,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
    robustness,
)

__all__ = [
    "Curve",
    "Kept",
    "LinearImputation",
    "Robustness",
    "abpc",
    "aopc",
    "attribution_localisation",
    "blur",
    "channel_mean",
    "class_contrast",
    "completeness_gap",
    "complexity",
    "consistency",
    "continuity",
    "effective_complexity",
    "efficient_mprt",
    "faithfulness_correlation",
    "flipping",
    "histogram_entropy",
    "infidelity",
    "input_invariance",
    "irof",
    "kept_share",
    "local_lipschitz",
    "mass_accuracy",
    "monotonicity",
    "monotonicity_correlation",
    "patches",
    "pearson",
    "pointing_game",
    "random_logit",
    "randomisation",
    "rank_accuracy",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
    "road",
    "robustness",
    "roc_auc",
    "selectivity",
    "sensitivity_n",
    "smooth_mprt",
    "sparseness",
    "spearman",
    "ssim",
    "sufficiency",
    "top_k_intersection",
    "translate",
    "uniform_noise",
]
