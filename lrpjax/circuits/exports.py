"""Attribution graphs for others: networkx, and the viewers of circuit-tracer and Neuronpedia.

The fields of the viewers are those of Neuronpedia's schema (hijohnnylin/neuronpedia,
apps/webapp/app/api/graph/graph-schema.json, version 1.0.0) and of decoderesearch/circuit-tracer,
circuit_tracer/frontend/graph_models.py.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrpjax._version import __version__

TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "input": "embedding",
    "output": "logit",
}
"""What viewers call the kinds of nodes."""


def to_networkx(graph: Any) -> Any:
    """See `Graph.to_networkx`."""
    try:
        import networkx
    except ImportError as error:
        raise ImportError('to_networkx needs networkx: pip install "lrpjax[circuits]"') from error
    made = networkx.DiGraph()
    numbers = zip(graph.nodes, graph.influence(), graph.remainder, graph.absorbed, strict=True)
    for node, influence, remainder, absorbed in numbers:
        own = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        given = {"influence": influence, "remainder": remainder, "absorbed": absorbed}
        made.add_node(node.name, **own, **{key: float(number) for key, number in given.items()})
    made.add_weighted_edges_from(graph.edges())
    return made


def viewer(
    graph: Any,
    ranks: Any,
    slug: str,
    scan: str,
    tokens: Sequence[str],
    prompt: str,
    labels: Mapping[str, str],
    probabilities: Sequence[float] | None,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """See `Graph.to_json`."""
    outputs = [node.name for node in graph.nodes if node.kind == "output"]
    chances = dict(
        zip(outputs, [0.0] * len(outputs) if probabilities is None else probabilities, strict=True)
    )
    used: set[str] = set()
    entries = []
    for node, rank in zip(graph.nodes, ranks, strict=True):
        number = node.feature or 0
        position = node.token if node.token is not None else len(tokens) - 1 if node.kind == "output" else 0
        # Layers of features count from 0, and the logits stand two above the last, as circuit-tracer has them.
        layer = "E" if node.kind == "input" else str(node.layer + (node.kind == "output") - 1)
        name, js, feature, label = {
            "feature": (f"{layer}_{number}_{position}", f"{layer}_{number}-0", None, ""),
            # circuit-tracer's "0_layer_token" is also the name of a feature of layer 0.
            "error": (f"{layer}_error_{position}", f"{layer}_{position}-0", -1, ""),
            "input": (f"E_{number}_{position}", f"E_{number}-{position}", position, ""),
            "output": (f"{layer}_{number}_{position}", f"L_{number}-{position}", number, node.name),
        }[node.kind]
        while name in used:  # several values that are not split, or have no tokens
            name += "'"
        used.add(name)
        if node.kind == "feature":
            row = number + node.layer - 1
            feature = row * (row + 1) // 2 + number  # Cantor's pairing of layer and number
        label = labels.get(node.name, label)
        if node.kind == "output":
            # The viewers read the probability from here.
            label = f'Output "{label}" (p={chances[node.name]:.3f})'
        entries.append(
            {
                "node_id": name,
                "feature": feature,
                "layer": layer,
                "ctx_idx": position,
                "feature_type": TYPES[node.kind],
                "token_prob": float(chances.get(node.name, 0.0)),
                "is_target_logit": node.name == outputs[0],
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": js,
                "clerp": label,
                "influence": None if node.kind == "output" else float(rank),
                "activation": node.value if node.kind == "feature" else None,
            }
        )
    ids = {node.name: entry["node_id"] for node, entry in zip(graph.nodes, entries, strict=True)}
    links = [{"source": ids[s], "target": ids[t], "weight": weight} for s, t, weight in graph.edges()]
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": list(tokens),
            "prompt": prompt,
            "schema_version": 1,
            "info": {"generator": {"name": "lrpjax", "version": __version__}},
            **metadata,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": entries,
        "links": links,
    }


def write(made: dict[str, Any], path: Path) -> None:
    """JSON to a file, which appears whole or not at all. Numbers that JSON has not are a ValueError."""
    text = json.dumps(made, allow_nan=False, ensure_ascii=False, indent=1)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        written = Path(folder, path.name)
        written.write_text(text, encoding="utf-8")
        os.replace(written, path)
