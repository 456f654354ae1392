"""What many explanations together say about a model: clusters of strategies, prototypes, concepts, outliers."""

from lrpjax.explore.findings import Cluster as Cluster
from lrpjax.explore.findings import ExploreError as ExploreError
from lrpjax.explore.findings import Findings as Findings
from lrpjax.explore.findings import load as load
from lrpjax.explore.graphs import eigengap as eigengap
from lrpjax.explore.own import Basis as Basis
from lrpjax.explore.own import Directions as Directions
from lrpjax.explore.own import Features as Features
from lrpjax.explore.own import Subspaces as Subspaces
from lrpjax.explore.own import with_concepts as with_concepts
from lrpjax.explore.prototypes import ClassPrototypes as ClassPrototypes
from lrpjax.explore.prototypes import Deviation as Deviation
from lrpjax.explore.prototypes import Prototypes as Prototypes
from lrpjax.explore.prototypes import fit_prototypes as fit_prototypes
from lrpjax.explore.prototypes import load_prototypes as load_prototypes
from lrpjax.explore.references import reference_samples as reference_samples
from lrpjax.explore.relations import attribution_graph as attribution_graph
from lrpjax.explore.spectral import spectral_analysis as spectral_analysis
from lrpjax.explore.statistics import ConceptStatistics as ConceptStatistics
from lrpjax.explore.statistics import concept_statistics as concept_statistics
from lrpjax.explore.subspaces import Contexts as Contexts
from lrpjax.explore.subspaces import contexts as contexts
from lrpjax.explore.subspaces import drsa as drsa
from lrpjax.explore.subspaces import prca as prca
from lrpjax.explore.vectors import pooled as pooled
