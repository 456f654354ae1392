"""Circuits: which parts of a function bring about what it says, by patching and by its linear approximations."""

from lrpjax.circuits.patching import PatchError as PatchError
from lrpjax.circuits.patching import Split as Split
from lrpjax.circuits.patching import attribute as attribute
from lrpjax.circuits.patching import attribute_edges as attribute_edges
from lrpjax.circuits.patching import intervene as intervene
from lrpjax.circuits.patching import patch as patch
from lrpjax.circuits.patching import split as split
