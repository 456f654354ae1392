"""What many explanations together say about a model: clusters of strategies, prototypes, concepts, outliers."""

from lrpjax.explore.findings import Cluster as Cluster
from lrpjax.explore.findings import ExploreError as ExploreError
from lrpjax.explore.findings import Findings as Findings
from lrpjax.explore.findings import load as load
from lrpjax.explore.graphs import eigengap as eigengap
from lrpjax.explore.spectral import spectral_analysis as spectral_analysis
from lrpjax.explore.vectors import pooled as pooled
