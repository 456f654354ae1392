"""From a Python function to one whose vector-Jacobian product is relevance.

The stages, in the order in which a function passes them:

* `graph`: tracing, to values and nodes (`compat`: all that differs between versions of JAX);
* `facts`: which values carry relevance, which are non-negative (`dataflow`: the engine of this and of the plan);
* `cancelling`: values that drop out of the result, and take no relevance;
* `recognise`: units, groups of nodes that one rule explains (`units`: what a unit is; `primitives`: families);
* `kinds`: how relevance goes through a unit under a rule (`vjps`: the few identities with another derivative);
* `plan`: which rule for which unit, and where relevance goes, in which form;
* `frame`: the rewritten function;
* `accounts`: what became of the relevance at every unit; `frozen`: the program that was run once, as a linear map;
* `program`: all of it together (`paths`: what `at=` names; `seeds`: the relevance that an output begins with).

Words that mean one thing here. A value *carries* relevance if it depends on the explained input along
floating-point numbers. Relevance *flows* from a value if it can come to what is explained, and *reaches* a value
if it comes to it from the output. The *form* of a cotangent is RATIO (relevance divided by the value) or PLAIN
(relevance); a unit *takes* those of its outputs in one form and *gives* those of its operands in one. A value is
*rectified* if relevance reaches it only where it is positive. It is *fixed* where it is read as a constant of the
relevance.
"""
