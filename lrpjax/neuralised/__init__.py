"""Clusterings and densities as neural networks: k-means, Gaussian mixtures, kernel density estimates and
one-class support vector machines, converted from scikit-learn to JAX functions that `lrpjax.relevance`
explains as their papers do.

These models speak of distances to points, and a distance explained by its plain formula is explained against
the origin, which means nothing to the model. Rewritten, each is a layer of distances, or of differences of
distances, and a soft minimum over them; relevance goes from the minimum to its operands by a soft-min, and
from each of them to the features of x relative to a root point (a centre, a data point, the border between
two clusters).

    f = neuralised.kmeans(KMeans(10).fit(X))
    lrpjax.relevance(f, target="max")(x)  # why x is in its cluster, and not in the next one
    lrpjax.relevance(lambda x: f(encoder(x)), composite, target="max")(x)  # the same behind a network

Kauffmann et al. 2022, "From Clustering to Cluster Explanations via Neural Networks" (IEEE document 9817459, arXiv
1906.07633), is the source for k-means; the rules here agree with the first author's demonstration
(github.com/jacobkauffmann/neon_demo, `neon.py`). Kauffmann, Müller, Montavon 2020, "Towards Explaining
Anomalies: A Deep Taylor Decomposition of One-Class Models" (Pattern Recognition 101, arXiv 1805.06230), is
the source for outliers: distances, a soft minimum over them, and a deep Taylor decomposition. Its equations
could not be read when this was written; they are rebuilt from its abstract and from that recipe, and the
docstrings say what is our own.

Everywhere Σ R is what the function returns (or the relevance that comes to it from above), to rounding and
without a stabiliser. The parameters of the models receive no relevance. Presets leave all this as it is, but for
the gradient family, which takes the gradient; a pair that names these functions (as "*" does) gives them its rule.
"""

from lrpjax.neuralised.functions import (
    ClusterEvidence,
    MixtureEvidence,
    MixtureOutlierness,
    ModelError,
    Outlierness,
    stiffness,
)
from lrpjax.neuralised.models import gaussian_mixture, kernel_density, kmeans, one_class_svm

__all__ = [
    "ClusterEvidence",
    "MixtureEvidence",
    "MixtureOutlierness",
    "ModelError",
    "Outlierness",
    "gaussian_mixture",
    "kernel_density",
    "kmeans",
    "one_class_svm",
    "stiffness",
]
