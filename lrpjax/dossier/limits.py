"""What a dossier's numbers do not show, in plain words, and what they say in brief."""

from __future__ import annotations

from typing import Any

FIXED = (
    "Relevance says how this model's output is made up of the parts of its input, by stated rules. It is no causal "
    "effect in the world: that a pixel or word has relevance does not say that changing the thing it "
    "shows would change "
    "the outcome.",
    "An explanation tells about the model and not whether the model is right. A wrong output is explained as well as a "
    "right one.",
    "Rules differ, and so do their maps. There is no ground truth of relevance; the checks here can show that an "
    "explanation is bad, and cannot prove that it is good.",
    "Everything here was measured on the samples that are named under Data. For inputs of another kind, another source "
    "or another time it says nothing.",
    "The intervals tell how much the choice of samples matters. They do not cover the choice of the composite, of the "
    "replacement values, of the regions or of the thresholds, and they are not widened because several are looked at: "
    "of 20 intervals one misses its mean by chance alone.",
    "Fairness, privacy, security and accuracy under change are not examined.",
)


def checks_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """All sanity checks of a dossier that were made."""
    sanity = data["sanity"]
    parts = [sanity[name] for name in ("randomisation", "classes")] if sanity["applies"] else []
    return [check for part in parts if part["applies"] for check in part["checks"]]


def limits(data: dict[str, Any]) -> list[dict[str, str]]:
    """What limits a dossier: {"kind": "found" or "always", "section", "text"}, what was found first."""
    found: list[tuple[str, str]] = []
    found += _data(data) + _model(data) + _conservation(data) + _sanity(data) + _faithfulness(data)
    for run in data["repeat"]["runs"]:
        if not run["bit_equal"]:
            gap = run["largest_difference"]
            found.append(
                (
                    "repeat",
                    f"A second run did not give the same bits ({run['what']}): relevances of "
                    f"{run['samples_that_differ']} samples differ, by at most {gap:.3g}, where the "
                    "largest relevance is "
                    f"{run['largest_relevance']:.3g}.",
                )
            )
    if not data["clusters"]["applies"]:
        found.append(("clusters", f"No clusters or outliers are reported: {data['clusters']['because']}."))
    made = [{"kind": "found", "section": section, "text": text} for section, text in found]
    return made + [{"kind": "always", "section": "", "text": text} for text in FIXED]


def _data(data: dict[str, Any]) -> list[tuple[str, str]]:
    about, found = data["data"], []
    n = about["examined"]
    if n < 30:
        found.append(
            ("data", f"Only {n} samples were examined: every statement about many inputs rests on these few.")
        )
    if n < 10:
        found.append(
            (
                "data",
                "Below 10 samples no intervals are given, and no check is passed or failed: all are undecided.",
            )
        )
    if about["given"] > n:
        left = len(about["left_out"])
        also = f", and {left} of those drawn could not be used" if left else ""
        found.append(
            (
                "data",
                f"{n} of {about['given']} given samples were examined, drawn at random (seed {about['seed']}){also}.",
            )
        )
    elif about["left_out"]:
        found.append(("data", f"{len(about['left_out'])} given samples could not be used."))
    reasons = sorted({row["reason"] for row in about["left_out"]})
    for reason in reasons:
        rows = [str(row["row"]) for row in about["left_out"] if row["reason"] == reason]
        listed = ", ".join(rows[:10]) + (", …" if len(rows) > 10 else "")
        found.append(("data", f"Left out, {reason}: {len(rows)} samples, rows {listed}."))
    accuracy = about["accuracy"]
    if accuracy is None:
        found.append(
            (
                "data",
                "The true classes were not given: how often the model is right is not known to this dossier.",
            )
        )
    elif about["wrong"]:
        found.append(
            (
                "data",
                f"The model is wrong on {len(about['wrong'])} of the {n} samples; their explanations explain errors.",
            )
        )
    return found


def _model(data: dict[str, Any]) -> list[tuple[str, str]]:
    model, found = data["model"], []
    held = model["program"]["arrays_held_by_f"]
    if held["elements"]:
        found.append(
            (
                "model",
                f"{held['elements']:,} numbers are held by the function itself, and are no params: "
                "they are hashed with "
                "the program, and no check randomises them.",
            )
        )
    if not model["weights"]["parameters"]:
        found.append(
            ("model", "The model came without params: there are no weights to hash or to randomise.")
        )
    found += [("composite", f"When the model was traced: {text}") for text in data["composite"]["warnings"]]
    known = " ".join(data["composite"]["warnings"])
    for note in data["composite"]["plan"]["notes"]:
        place = note.partition(": ")[2]
        if place not in known:
            found.append(("composite", f"Noted in the plan: {note}"))
    unmatched = data["composite"]["plan"]["unmatched"]
    if unmatched:
        found.append(
            ("composite", f"Pairs of the composite that matched nothing here: {'; '.join(unmatched)}.")
        )
    return found


def _conservation(data: dict[str, Any]) -> list[tuple[str, str]]:
    kept = data["conservation"]
    if not kept["applies"]:
        return [("conservation", f"Conservation does not apply: {kept['because']}.")]
    found, ledger = [], kept["ledger"]
    share = kept["share"]
    if share["max"] - share["min"] > 0.2 or abs(share["median"] - 1) > 0.05:
        found.append(
            (
                "conservation",
                f"Relevance of the input sums to {share['median']:.1%} of the explained output in the median (from "
                f"{share['min']:.1%} to {share['max']:.1%}), not to all of it.",
            )
        )
    names = {
        "bias": "biases, which are no part of the input",
        "epsilon": "the stabilisers of the rules",
        "other": "units whose rules do not conserve",
        "constants": "constants of the program",
    }
    for name, words in names.items():
        part = ledger[name] / ledger["output"] if ledger["output"] else 0.0
        if abs(part) >= 0.005:
            how = "went to" if part > 0 else "was added by (they spoke against the output)"
            found.append(("conservation", f"{abs(part):.1%} of the output's relevance {how} {words}."))
    if kept["zero_outputs"]:
        found.append(
            (
                "conservation",
                f"The explained output of {kept['zero_outputs']} samples is 0: they have no share.",
            )
        )
    cancelled = kept["cancelled"]["median"]
    if cancelled is not None and cancelled > 10:
        found.append(
            (
                "conservation",
                f"Relevances of opposite sign cancel: their sizes sum to {cancelled:.3g} times their "
                "sum in the median. "
                "Single values then claim more than there is to explain.",
            )
        )
    return found


def _sanity(data: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, title in (("randomisation", "Model randomisation"), ("classes", "Dependence on the class")):
        part = data["sanity"][name]
        if not part["applies"]:
            found.append(("sanity", f"{title} was not tested: {part['because']}."))
    for check in checks_of(data):
        if check["verdict"] != "passed":
            said = "failed" if check["verdict"] == "failed" else "left undecided"
            mean = check["found"]["mean"]
            shown = "no value" if mean is None else f"{mean:.3g}"
            found.append(("sanity", f"Sanity check {said}: {check['name']} ({shown}; {check['rule']})."))
    first = data["sanity"]["randomisation"]
    like = first["input_likeness"]["mean"] if first["applies"] else None
    if like is not None and like > 0.5:
        found.append(
            (
                "sanity",
                f"Absolute relevance looks like the input itself (Spearman correlation {like:.3g}): "
                "it can stay alike under "
                "randomisation because the input does. The check of absolute relevance is then hard "
                "to pass for any method "
                "that multiplies by the input.",
            )
        )
    return found


def _faithfulness(data: dict[str, Any]) -> list[tuple[str, str]]:
    faith = data["faithfulness"]
    if not faith["applies"]:
        return [("faithfulness", f"Faithfulness was not measured: {faith['because']}.")]
    found = []
    for fill in faith["fills"]:
        words = {
            "failed": "does worse than a random one",
            "undecided": "was not shown to do better than a random one",
        }.get(fill["verdict"])
        if words:
            found.append(
                ("faithfulness", f"Replacing regions by {fill['fill']}, the order of relevance {words}.")
            )
    return found


def brief(data: dict[str, Any]) -> list[dict[str, str]]:
    """Questions, each with its answer in words and a verdict: "passed", "failed", "undecided" or "not tested"."""
    rows = []
    kept = data["conservation"]
    if kept["applies"]:
        share = kept["share"]
        rows.append(
            (
                "How much of the output is accounted for by the input?",
                f"{share['median']:.1%} in the median of {kept['n']} samples (from {share['min']:.1%} to "
                f"{share['max']:.1%})",
                "measured",
            )
        )
    else:
        rows.append(("How much of the output is accounted for by the input?", kept["because"], "not tested"))
    for name, question in (
        ("randomisation", "Does the explanation depend on what the model has learned?"),
        ("classes", "Does it depend on the class that it is asked for?"),
    ):
        part = data["sanity"][name]
        if not part["applies"]:
            rows.append((question, part["because"], "not tested"))
            continue
        verdicts = [check["verdict"] for check in part["checks"]]
        words = "; ".join(f"{c['name']}: {c['verdict']}" for c in part["checks"])
        rows.append((question, words, _together(verdicts)))
    faith, question = (
        data["faithfulness"],
        "Does the output depend on what is called relevant, more than on a random part?",
    )
    if faith["applies"]:
        words = "; ".join(f"regions replaced by {fill['fill']}: {fill['verdict']}" for fill in faith["fills"])
        rows.append((question, words, _together([fill["verdict"] for fill in faith["fills"]])))
    else:
        rows.append((question, faith["because"], "not tested"))
    runs = data["repeat"]["runs"]
    words = "; ".join(
        f"{run['what']}: {'the same bits' if run['bit_equal'] else 'not the same bits'}" for run in runs
    )
    equal = all(run["bit_equal"] for run in runs)
    rows.append(("Does a second run give the same?", words, "passed" if equal else "failed"))
    return [{"question": q, "answer": a, "verdict": v} for q, a, v in rows]


def _together(verdicts: list[str]) -> str:
    return next((v for v in ("failed", "undecided") if v in verdicts), "passed")
