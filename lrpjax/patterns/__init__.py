"""PatternNet and PatternAttribution: patterns fitted to a model in one streaming pass over data, and how good they are.

Model (Kindermans et al. 2018, "Learning how to explain neural networks: PatternNet and PatternAttribution", arXiv
1705.05598): what a neuron y = w·x sees is a signal s that y comes from and a distractor d that it does not, x = s + d,
cov[d, y] = 0. The pattern a says where the signal lies, S(x) = a·(w·x). It is

    a = (E_m[x y] − E_m[x] E[y]) / (w·E_m[x y] − w·E_m[x] E[y])

with E_m the mean over the samples in a mask m and E over all samples: all of them for kind "linear" (then a = cov[x, y]
/ var[y], eq. 4), those with positive (or not positive) output of the unit for "relu" and "relu.negative" (the
two-component estimator, eq. 8). Every position of a convolution is a sample. This is what iNNvestigate 1.0.9 computes;
where the denominator is 0 (a neuron that was never active), the pattern is 0.

`lrpjax.patterns.estimators` has the signal estimators that nothing is fitted for, and the quality of all of them.
"""

from lrpjax.patterns.fitted import Layer as Layer
from lrpjax.patterns.fitted import LayerMoments as LayerMoments
from lrpjax.patterns.fitted import Moments as Moments
from lrpjax.patterns.fitted import Patterns as Patterns
from lrpjax.patterns.fitted import finish as finish
from lrpjax.patterns.fitted import load as load
from lrpjax.patterns.fitted import merge as merge
from lrpjax.patterns.fitted import same_model as same_model
from lrpjax.patterns.fitted import save as save
from lrpjax.patterns.fitting import KINDS as KINDS
from lrpjax.patterns.fitting import collect as collect
from lrpjax.patterns.fitting import fit as fit
from lrpjax.patterns.fitting import start as start

__all__ = ["Moments", "Patterns", "collect", "finish", "fit", "load", "merge", "save", "start"]
