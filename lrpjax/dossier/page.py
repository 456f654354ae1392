"""The page of a dossier: one file of HTML that needs nothing besides itself, on screens of all widths and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lrpjax.dossier import charts
from lrpjax.dossier.pieces import (
    INTERVAL,
    badge,
    code,
    digits_of,
    facts,
    figure,
    interval_cell,
    more,
    paragraph,
    refused,
    table,
    with_interval,
)
from lrpjax.dossier.style import STYLE


def render(data: Mapping[str, Any]) -> str:
    """The page of a dossier's data. All text in it is escaped; it has no scripts and needs no network."""
    name = data["model"]["name"] or "a model"
    sections = [
        ("brief", "In brief", _brief(data)),
        ("limits", "Limits", _limits(data)),
        ("data", "Data", _data(data)),
        ("conservation", "Conservation, and where relevance went", _conservation(data["conservation"])),
        ("sanity", "Sanity checks", _sanity(data["sanity"])),
        ("faithfulness", "Faithfulness", _faithfulness(data["faithfulness"])),
        ("clusters", "Clusters and outliers", _clusters(data)),
        ("model", "Model", _model(data["model"])),
        ("composite", "Composite and plan", _composite(data["composite"])),
        ("environment", "Environment", _environment(data["environment"])),
        ("repeat", "Reproduction", _repeat(data)),
    ]
    contents = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{number}. {title}</h2>'
        f"{content}</section>"
        for number, (key, title, content) in enumerate(sections, 1)
    )
    made = data["made"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Audit dossier: {escape(name)}</title><style>{STYLE}</style></head>\n<body>"
        '<a class="skip" href="#brief">to the findings</a>'
        f"<header><h1>Audit dossier of an explanation</h1><p>{escape(name)}, explained by layer-wise relevance "
        f"propagation, composite {code(data['composite']['name'])}. Made {escape(made['date'])} in "
        f"{made['seconds']:g} s with lrpjax {escape(str(data['environment']['versions']['lrpjax']))}. All numbers are "
        f'in dossier.json beside this page.</p></header>\n<nav aria-label="Contents"><ol>{contents}</ol></nav>\n'
        f"<main>{body}</main></body></html>\n"
    )


# ----------------------------------------------------------------------------------------------------------- sections


def _brief(data: Mapping[str, Any]) -> str:
    rows = [(row["question"], badge(row["verdict"]), row["answer"]) for row in data["brief"]]
    words = (
        "<strong>passed</strong> and <strong>failed</strong>: the whole interval lies on one side of the stated "
        "threshold. <strong>undecided</strong>: it does not, or there are too few samples for an interval. A row with "
        "several checks has the worst verdict of them. That a check is passed is a necessary condition of a good "
        "explanation, and no proof of one. What the answers rest on stands in the sections below."
    )
    return table("what was asked, and what was found", ("question", "verdict", "answer"), rows) + paragraph(
        words
    )


def _limits(data: Mapping[str, Any]) -> str:
    groups = {"found": "Found here", "always": "True of every such dossier"}
    content = ""
    for kind, title in groups.items():
        items = "".join(f"<li>{escape(row['text'])}</li>" for row in data["limits"] if row["kind"] == kind)
        content += f"<h3>{title}</h3>" + (
            f"<ul>{items}</ul>" if items else paragraph("Nothing was found that limits it more.")
        )
    return content


def _data(data: Mapping[str, Any]) -> str:
    about = data["data"]
    rows: list[tuple[str, Any]] = [
        ("samples given", about["given"]),
        ("samples examined", about["examined"]),
        ("how they were chosen", f"at random, without replacement, seed {about['seed']}")
        if about["examined"] + len(about["left_out"]) < about["given"]
        else ("how they were chosen", "all that could be used"),
        ("left out", len(about["left_out"])),
        ("shape and type of one", f"{'×'.join(map(str, about['shape']))}, {about['dtype']}"),
        (
            "range of the values",
            f"{about['range'][0]:.4g} to {about['range'][1]:.4g}, mean {about['mean']:.4g}",
        ),
        ("SHA-256 of the samples", digits_of(about["sha256"])),
    ]
    if about["accuracy"]:
        found = about["accuracy"]
        rows.append(
            (
                "accuracy on them",
                f"{found['mean']:.1%} [{found['low']:.1%}, {found['high']:.1%}] ({INTERVAL} of "
                f"Wilson, n = {found['n']})",
            )
        )
    content = paragraph("These are the inputs that everything on this page was measured on.") + facts(
        "the data", rows
    )
    names = data["model"]["names"]
    of = lambda c: names[c] if names and 0 <= c < len(names) else f"class {c}"
    if about["true_classes"]:
        counts = [(of(int(c)), n) for c, n in about["true_classes"].items()]
        content += more(
            "samples by true class", table("samples by true class", ("class", "samples"), counts, " r")
        )
    if about["wrong"]:
        wrong = [(row["row"], of(row["true"]), of(row["predicted"])) for row in about["wrong"]]
        content += more(
            f"the {len(wrong)} samples that the model gets wrong",
            table("samples that the model gets wrong", ("row", "true class", "predicted class"), wrong, "r"),
        )
    rows_of = ", ".join(map(str, about["rows"]))
    return content + more("rows that were examined, counted from 0", paragraph(rows_of, "wide"))


def _conservation(kept: Mapping[str, Any]) -> str:
    intro = paragraph(
        "Layer-wise relevance propagation divides the output among the parts of the input. If nothing is lost, the "
        "parts sum to the output: Σ R / f(x) = 1 (Bach et al. 2015, eq. 2). What is missing was taken by biases and by "
        "other things that are no part of the input; a sum above 1 means that these spoke against the output."
    )
    if not kept["applies"]:
        return intro + refused(kept)
    share, ledger = kept["share"], kept["ledger"]
    said = (
        f"Of {kept['n']} samples the share Σ R / f(x) is {share['median']:.4g} in the median, from "
        f"{share['min']:.4g} to "
        f"{share['max']:.4g}; its mean is {with_interval(share['mean'], '.4g')}."
    )
    counts = share["histogram"]
    drawing = charts.histogram(
        counts["edges"],
        counts["counts"],
        f"Histogram. {said}",
        "share of the output that arrived, Σ R / f(x)",
        1.0,
    )
    content = (
        intro
        + paragraph(escape(said))
        + figure(drawing, "The share of each sample; the dashed line is 1, nothing lost.")
    )
    total = ledger["output"]
    part = lambda value: (
        f"{round(value / total, 4) + 0.0:.2%}" if total else "–"
    )  # + 0.0: no minus before a 0
    names = {
        "arrived": "arrived at the input",
        "bias": "biases and other constants that are added",
        "epsilon": "stabilisers of the rules (ε)",
        "other": "units whose rules do not conserve",
        "constants": "constants of the program that enter by themselves",
        "rest": "rounding of the sums",
    }
    rows = [(words, float(ledger[name]), part(ledger[name])) for name, words in names.items()]
    rows.append(("the explained outputs, all together", float(total), "100.00%" if total else "–"))
    content += table(
        "where the relevance of all samples went, in the output's unit",
        ("where", "sum", "share"),
        rows,
        " rr",
    )
    if total and kept["stages"]:
        stages = kept["stages"][:16]
        values = [stage["relevance"] / total for stage in stages]
        words = "; ".join(f"{s['path']} {v:.1%}" for s, v in zip(stages, values, strict=True))
        content += figure(
            charts.bars([s["path"] for s in stages], values, f"What is left after each stage. {words}"),
            "What is left of the output's relevance after each part of the network, from the output "
            "(above) to the input."
            + ("" if len(kept["stages"]) <= 16 else f" The first 16 of {len(kept['stages'])}."),
        )
        lost = [
            (
                s["path"],
                s["units"],
                *(float(s[c]) for c in ("relevance", "bias", "epsilon", "other", "constants")),
            )
            for s in kept["stages"]
        ]
        head = ("part of the network", "units", "left", "bias", "stabiliser", "other", "constants")
        content += more("the numbers", table("stages from the output to the input", head, lost, " rrrrrr"))
    cancelled = kept["cancelled"]
    if cancelled["median"] is not None:
        content += paragraph(
            f"Sizes against sums: Σ|R| is {cancelled['median']:.3g} times |Σ R| in the median, and at most "
            f"{cancelled['max']:.3g} times. 1 means that no relevance speaks against the output; "
            "large numbers mean that "
            "relevances of opposite sign cancel."
        )
    return content


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            c["name"],
            badge(c["verdict"]),
            with_interval(c["found"]),
            c["measure"],
            f"{c['rule']}. {c['reason']}",
        )
        for c in checks
    ]
    head = ("check", "verdict", f"mean [{INTERVAL}]", "what is measured", "threshold, and why")
    return table("checks", head, rows)


def _sanity(sanity: Mapping[str, Any]) -> str:
    first, second = sanity["randomisation"], sanity["classes"]
    content = "<h3>Does the explanation depend on what the model has learned?</h3>" + paragraph(
        "The weights are replaced layer by layer, from the output down, by ones that have learned "
        "nothing, and each time "
        "the same samples are explained anew for the same classes (Adebayo et al. 2018, cascading randomisation). An "
        "explanation that stays the same does not show the model."
    )
    if first["applies"]:
        steps = first["steps"]
        x = list(range(len(steps) + 1))
        line = lambda key, part, start: [start, *(s[key][part] for s in steps)]
        bands = [
            (
                words,
                style,
                [1.0, *(s[key]["mean"] or 0.0 for s in steps)],
                line(key, "low", 1.0),
                line(key, "high", 1.0),
            )
            for key, words, style in (("signed", "signed", "first"), ("absolute", "absolute", "second"))
        ]
        said = "; ".join(
            f"{s['layer']}: {with_interval(s['signed'])} signed, {with_interval(s['absolute'])} absolute"
            for s in steps
        )
        drawing = charts.curves(
            x,
            bands,
            f"Likeness after each step. {said}",
            "layers randomised, from the output down",
            "Spearman correlation",
        )
        rows = [(s["layer"], interval_cell(s["signed"]), interval_cell(s["absolute"])) for s in steps]
        head = ("randomised down to", f"signed relevance [{INTERVAL}]", f"absolute relevance [{INTERVAL}]")
        content += paragraph(f"The weights that have learned nothing: {escape(first['fresh'])}.")
        content += figure(
            drawing, f"How alike the explanation stays (1: the same); bands are the {INTERVAL}s."
        )
        content += more("the numbers", table("likeness after each step", head, rows)) + _checks(
            first["checks"]
        )
        like = first["input_likeness"]
        content += paragraph(
            f"For comparison: absolute relevance correlates by {escape(with_interval(like))} with "
            "the absolute values of "
            "the input itself. Where that is large, as for drawings on a background of zeros, absolute relevance stays "
            "alike because the input stays the same, whatever the weights are, and the signed number says more."
        )
    else:
        content += refused(first)
    content += "<h3>Does it depend on the class that it is asked for?</h3>"
    content += _checks(second["checks"]) if second["applies"] else refused(second)
    return content


def _faithfulness(faith: Mapping[str, Any]) -> str:
    intro = paragraph(
        "Regions of the input are replaced one after the other, and the explained output is read. If "
        "it falls faster in "
        "the order of relevance than in random orders, the model depends on what the explanation "
        "calls relevant (region "
        "flipping, Samek et al. 2017). A replaced input may be unlike all that the model has seen, so that results for "
        "several replacements are shown where none was chosen."
    )
    if not faith["applies"]:
        return intro + refused(faith)
    boot = faith["bootstrap"]
    content = intro + paragraph(
        f"Regions: {escape(faith['regions']['what'])}, {faith['regions']['number']} of them. Random: the mean of "
        f"{faith['orders']} random orders of each sample. Intervals: {boot['level']:.0%}, percentile "
        "bootstrap of the mean "
        f"over samples, {boot['resamples']:,} resamples, seed {boot['seed']}. "
        f"Sets: {faith['subsets']} random sets of {faith['subset_regions']} regions of each sample."
    )
    names = (
        ("morf", "most relevant first", "first"),
        ("random", "random order", "second"),
        ("lerf", "least relevant first", "third"),
    )
    for fill in faith["fills"]:
        curve = lambda key, part, fill=fill: [point[part] for point in fill["curves"][key]]
        bands = [
            (words, style, [v or 0.0 for v in curve(key, "mean")], curve(key, "low"), curve(key, "high"))
            for key, words, style in names
        ]
        said = ", ".join(f"{words} from {band[0]:.3g} to {band[-1]:.3g}" for words, _, band, _, _ in bands)
        drawing = charts.curves(
            fill["counts"],
            bands,
            f"Mean output as regions are replaced by {fill['fill']}: {said}",
            "regions replaced",
            "output",
        )
        head = ("regions", *(words for _, words, _ in names))
        rows = [
            (count, *(interval_cell(fill["curves"][key][i]) for key, _, _ in names))
            for i, count in enumerate(fill["counts"])
        ]
        means = [
            ("output lost more than in random orders (difference of AOPC, paired by sample)", "gain", "> 0"),
            ("area between least and most relevant first (ABPC)", "abpc", "> 0"),
            (
                "correlation of a set's relevance with what its removal costs (sensitivity-n)",
                "correlation",
                "1",
            ),
        ]
        numbers = [(words, interval_cell(fill[key]), fill[key]["n"], good) for words, key, good in means]
        content += f"<h3>Replaced by {escape(fill['fill'])} {badge(fill['verdict'])}</h3>"
        content += figure(
            drawing, f"Mean output of the explained class; bands are the {INTERVAL}s of the means."
        )
        content += table("in numbers", ("measure", f"mean [{INTERVAL}]", "n", "good"), numbers, "  r")
        content += more("the curves", table("mean output after each step", head, rows, "r"))
    return content + paragraph(
        "Passed: the interval of the first number lies above 0, that is, the order of relevance is "
        "better than chance. It "
        "does not say that the order is the best one."
    )


def _clusters(data: Mapping[str, Any]) -> str:
    found, store = data["clusters"], data["store"]
    names = data["model"]["names"]
    of = lambda c: names[c] if names and 0 <= c < len(names) else f"class {c}"
    content = paragraph(
        "Groups of inputs that the model treats alike, found in their explanations. A small group "
        "that is unlike the rest "
        "of its class may rest on something that does not belong to the class, such as a watermark: look at its inputs."
    )
    if found["applies"]:
        listed = lambda rows: ", ".join(map(str, rows))
        rows = [
            (
                c["number"],
                of(c["class"]),
                c["size"],
                float(c["unlike"]),
                listed(c["prototypes"]),
                listed(c["outliers"]),
            )
            for c in found["clusters"]
        ]
        head = ("cluster", "class", "samples", "unlike its class", "most typical rows", "least typical rows")
        content += paragraph(
            f"{found['explored']:,} explanations of {found['groups']} classes were explored."
        )
        content += table("clusters, the one most unlike its class first", head, rows, "r rr")
        odd = [(o["row"], of(o["class"]), float(o["outlier"])) for o in found["outliers"]]
        content += table(
            "rows that lie farthest from all others", ("row", "class", "times the usual distance"), odd, "r r"
        )
        content += "".join(
            paragraph(f"Not explored: {number} rows, {escape(reason)}.")
            for reason, number in found["skipped"].items()
        )
    else:
        content += refused(found)
    if store is not None:
        compared, kept = store["outputs_compared"], store["kept"]
        rows = [
            ("store", store["name"]),
            ("rows", store["rows"]),
            ("complete", store["complete"]),
            ("rows that are not finite", store["not_finite"]),
            *((f"setting: {key}", value) for key, value in store["settings"].items() if value is not None),
            *((f"version: {key}", value) for key, value in store["versions"].items()),
        ]
        if compared:
            rows.append(
                (
                    "its outputs against those of this model",
                    f"differ by at most {compared['largest_difference']:.3g} on {compared['samples']} "
                    "samples (largest output "
                    f"{compared['largest_output']:.3g})",
                )
            )
        if kept:
            rows.append(
                (
                    "Σ R / f(x) of all its rows",
                    f"{kept['median']:.4g} in the median, from {kept['min']:.4g} to {kept['max']:.4g} "
                    f"(n = {kept['n']})",
                )
            )
        content += "<h3>The store of explanations</h3>" + facts("the store", rows)
    return content


def _model(model: Mapping[str, Any]) -> str:
    held = model["program"]["arrays_held_by_f"]
    rows = [
        ("name", model["name"]),
        ("parameters", model["weights"]["parameters"]),
        ("outputs", "×".join(map(str, model["outputs"])) or "one number"),
        ("SHA-256 of the weights", digits_of(model["weights"]["sha256"])),
        ("SHA-256 of the program (jaxpr, for one input)", digits_of(model["program"]["jaxpr_sha256"])),
        ("numbers held by the function itself", held["elements"]),
        ("their SHA-256", digits_of(held["sha256"] if held["elements"] else None)),
        (
            "SHA-256 of the explanation's program (StableHLO)",
            digits_of(model["explanation"]["stablehlo_sha256"]),
        ),
        (
            "SHA-256 of what XLA made of it (optimised HLO)",
            digits_of(model["explanation"]["optimised_hlo_sha256"]),
        ),
    ]
    leaves = [
        (
            leaf["path"] or "-",
            "×".join(map(str, leaf["shape"])) or "()",
            leaf["dtype"],
            digits_of(leaf["sha256"][:16]),
        )
        for leaf in model["weights"]["leaves"]
    ]
    words = (
        "These hashes say which model was examined, to the last bit: another training, another format of numbers or "
        "another architecture changes them. That of an array is of its dtype, shape and bytes."
    )
    return (
        paragraph(words)
        + facts("the model", rows)
        + more(
            f"the {len(leaves)} arrays of weights",
            table(
                "arrays of weights; the first 16 digits of their SHA-256",
                ("path", "shape", "dtype", "SHA-256"),
                leaves,
            ),
        )
    )


def _composite(composite: Mapping[str, Any]) -> str:
    rows = [
        ("composite", composite["name"]),
        ("method", composite["method"]),
        ("explained", composite["target"]),
        *((f"pair {i}", f"{selector}: {rule}") for i, (selector, rule) in enumerate(composite["pairs"], 1)),
        ("default rule", composite["default"] or "that of each kind of unit"),
    ]
    units = [
        (i, u["path"] or "-", u["kind"], u["rule"], "×".join(map(str, u["shape"])) or "()")
        for i, u in enumerate(composite["plan"]["units"])
    ]
    words = "The composite says which rule shares relevance in which part of the network. Another one gives other maps."
    units_table = table(
        "units of the network in the order in which they run",
        ("#", "path", "kind", "rule", "shape"),
        units,
        "r",
    )
    return (
        paragraph(words)
        + facts("the composite", rows)
        + more(f"the plan: the rules of all {len(units)} units", units_table)
    )


def _environment(environment: Mapping[str, Any]) -> str:
    rows = [
        *((f"version of {name}", version) for name, version in environment["versions"].items()),
        ("platform", environment["platform"]),
        ("machine", f"{environment['machine']}, {environment['cores']} cores"),
        ("device", f"{environment['device']} ({environment['backend']}), {environment['devices']} of them"),
        ("compiler", " ".join(environment["compiler"])),
        *environment["settings"].items(),
        ("XLA_FLAGS", environment["xla_flags"] or "not set"),
    ]
    return paragraph("Numbers depend on all of these in their last digits.") + facts("the environment", rows)


def _repeat(data: Mapping[str, Any]) -> str:
    rows = [
        (
            run["what"],
            run["bit_equal"],
            float(run["largest_difference"] or 0.0),
            float(run["largest_relevance"] or 0.0),
            run["samples_that_differ"],
        )
        for run in data["repeat"]["runs"]
    ]
    head = ("second run", "the same bits", "largest difference", "largest relevance", "samples that differ")
    command = data["made"]["command"]
    content = paragraph(
        "The explanations of all samples were computed again while this dossier was made, and compared bit by bit."
    )
    content += table("second runs", head, rows, "  rrr")
    hashes = data["explanations"]
    content += facts(
        "what a run elsewhere must give, if it gives the same bits",
        [
            ("SHA-256 of the outputs", digits_of(hashes["outputs_sha256"])),
            ("SHA-256 of the relevances", digits_of(hashes["relevance_sha256"])),
        ],
    )
    if command:
        content += (
            paragraph("The command that made this dossier:") + f'<pre tabindex="0">{escape(command)}</pre>'
        )
        content += paragraph(
            "The same command with <code>--check dossier.json</code> makes it anew, and says which "
            "parts are equal in every "
            "bit, which are not, and by how much."
        )
    else:
        content += paragraph(
            "It was made by a call of <code>lrpjax.dossier.make</code>. A second dossier is compared with this one by "
            "<code>lrpjax.dossier.compare(old, new)</code>, which says what is equal in every bit, "
            "and what differs by how much."
        )
    return content + paragraph("Date, duration and command are left out of the comparison.")
