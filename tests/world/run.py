"""run"""

import argparse
import fnmatch
import importlib
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

FILES = ("shims", "haiku_models", "hf_models", "vision_models", "sequence_models", "linen_models")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names or globs of models; all without")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--no-times", action="store_true")
    options = parser.parse_args()
    import check

    for file in FILES:
        importlib.import_module(file)
    check.VERBOSE = options.verbose
    names = [n for g in options.names or ['*'] for n in check.MODELS if fnmatch.fnmatch(n, g)]
    if options.list:
        print("\n".join(names))
        return 0
    passed = 0
    for name in names:
        row = check.check(name, check.MODELS[name], eager=not options.no_eager, times=not options.no_times)
        ratios = " ".join(f"{k}={a:.2g}({b:.2f})" for k, (a, b) in row.ratios.items())
        print(f"{name:32s} {row.equations:5d} {row.units:4d} {ratios} t={row.trace:.1f}/{row.compile:.1f} {dict(row.unrecognised)} {'FAIL ' + '; '.join(row.failures) if row.failures else 'pass'}", flush=True)
        passed += not row.failures
    print(f"{passed} of {len(names)} pass")
    return 0 if passed == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
