"""The generators of reference values need packages that the tests do not."""

collect_ignore_glob = ["make_*.py"]
