"""Taking out of a model what it has learned and should not have: directions of concepts, and corrections along them.

A model that has learned a *Clever Hans* (a watermark that tells the class) keeps it in its activations, mostly along
one direction. `cav` finds the direction from samples with and without the concept, `project` takes it out of a model
(P-ClArC), `react` does so only for those samples that need it (reactive ClArC), and `augment` puts it into every
sample, so that training on goes without it (a-ClArC). All three return a function of the same arguments as the model,
which can be jitted, differentiated, trained and explained as the model can.

The other way to repair a model is to train it on with relevance in the loss (right for the right reasons, Ross et al.
2017): `lrpjax.relevance` is a function that JAX differentiates, so nothing of it needs to be here. The notebook
*Right for the right reasons* shows it; `metrics.mass_accuracy(abs(R), mask)` is the share of relevance that such a loss
makes small.
"""

from lrpjax.repair.cavs import CAV as CAV
from lrpjax.repair.cavs import RepairError as RepairError
from lrpjax.repair.cavs import activations as activations
from lrpjax.repair.cavs import cav as cav
from lrpjax.repair.clarc import augment as augment
from lrpjax.repair.clarc import project as project
from lrpjax.repair.clarc import react as react

__all__ = ["CAV", "RepairError", "activations", "augment", "cav", "project", "react"]
