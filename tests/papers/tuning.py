"""Which composites explain real networks best: `lrpjax.tune` on EfficientNet-Lite0 with photographs and on MiniLM with
sentences. The presets `gamma_stages` and `gamma_shared`, and γ in `cp_lrp`, come from it.

    python tests/papers/tuning.py [photographs] [sentences]    # about 20 minutes on one core; needs lrpjax[photo,text]

The tables go to tests/papers/results/. Of few inputs they show an order, not a law.
"""

import datetime
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import lrpjax
from lrpjax import Composite, composites, pretrained, rules, select, tuning

RESULTS = pathlib.Path(__file__).parent / "results"
LAYERS = select.kind("conv", "dense")

PAIRS = (
    ("The doctor treated the patient in the hospital.", "The physician cured the sick woman at the clinic."),
    ("A man is playing a guitar on stage.", "Someone performs music with an instrument at a concert."),
    ("The cat is sleeping on the warm sofa.", "A kitten takes a nap on the couch."),
    ("Our company will raise its prices next year.", "The firm plans to charge more from January on."),
    ("Heavy rain flooded the streets of the town.", "After the storm the roads were under water."),
    ("The children are playing football in the park.", "Kids kick a ball on the grass."),
    ("She bought fresh bread at the small bakery.", "The woman purchased a loaf from the baker."),
    ("The train to the city was delayed again.", "Once more the railway service ran late."),
    (
        "Scientists discovered a new planet around a star.",
        "Astronomers have found another world outside of the solar system.",
    ),
    ("He forgot his password for the bank account.", "The man could not log in to online banking."),
)
"""A sentence, of eleven tokens, and one that means the same: the similarities to all of the second are its classes."""


def photographs() -> tuple[tuning.Tuning, str]:
    network = pretrained.lite0()
    x = jnp.stack([jnp.asarray(pretrained.photograph(image)) for image in pretrained.photographs().values()])
    box = network.low, network.high

    def one(gamma, epsilon, bias):
        layer = rules.Gamma(gamma, epsilon, bias=bias)
        sums = select.kind("sum", "pool"), rules.Norm()
        return Composite([(select.first("conv"), rules.ZBox(*box)), (LAYERS, layer), sums])

    biases = [True, False, "share", "magnitude"]
    candidates = {
        "input_x_gradient": composites.input_x_gradient(),
        "epsilon": composites.epsilon(),
        "epsilon_plus": composites.epsilon_plus(),
        "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
        "epsilon_gamma_box": composites.epsilon_gamma_box(*box),
        "deep_taylor": composites.deep_taylor(*box),
        "one γ": (one, {"gamma": [0.01, 0.25, 1.0], "epsilon": [1e-6, 0.3], "bias": biases}),
        "gamma_stages": (
            lambda upper, gamma: composites.gamma_stages(*box, gamma=gamma, upper=upper),
            {"upper": [0.03, 0.04, 0.05], "gamma": [0.25, 1.0]},
        ),
        "gamma_shared": composites.gamma_shared(*box),
    }
    flipped = tuning.Measure(tuning.flipping(16, steps=14, batch=4), "max")
    measures = {**tuning.MEASURES, "flipping": flipped}
    result = lrpjax.tune(jax.jit(lambda x: network(x)), x, candidates, measures, batch=6, together=2)
    return result, f"EfficientNet-Lite0 ({network.source}), {len(x)} photographs, patches of 16 pixels greyed"


def sentences() -> tuple[tuning.Tuning, str]:
    network = pretrained.minilm()
    x = jnp.concatenate([network.embed(network.tokens(own).ids) for own, _ in PAIRS])
    others = jnp.stack([network(network.sentence(other))[0] for _, other in PAIRS])
    masked = network.embed(network.tokens("[MASK]").ids)[0, 1]

    def layers(gamma, epsilon, bias, softmax):
        ends = [(select.kind("softmax"), rules.Stop())] if softmax == "stop" else []
        shifts = [] if bias is True else [(select.kind("affine"), rules.Epsilon(epsilon, bias=bias))]
        layer = rules.Gamma(gamma, epsilon, bias=bias)
        return Composite([*ends, (LAYERS, layer), *shifts, (select.kind("product"), rules.Product("gate"))])

    candidates = {
        "input_x_gradient": composites.input_x_gradient(),
        "attnlrp": composites.attnlrp(),
        "cp_lrp": composites.cp_lrp(),
        "cp_lrp, γ": (lambda gamma: composites.cp_lrp(gamma=gamma), {"gamma": [0.02, 0.05, 0.1, 0.25]}),
        "one γ": (
            layers,
            {
                "gamma": [0.0, 0.05, 0.25],
                "epsilon": [1e-6, 0.1],
                "bias": [True, "share", "magnitude"],
                "softmax": ["taylor", "stop"],
            },
        ),
    }
    flipped = tuning.Measure(tuning.flipping(1, fill=masked, steps=9, batch=9), "max")
    measures = {**tuning.MEASURES, "flipping": flipped}
    result = lrpjax.tune(
        jax.jit(lambda x: network(x) @ others.T), x, candidates, measures, batch=16, together=6
    )
    return result, f"MiniLM ({network.source}), {len(x)} sentences, tokens masked"


def table(result: tuning.Tuning, what: str) -> str:
    front = result.front
    names = list(result.measures)
    lines = [
        f"{what}; float32, jax {jax.__version__} on {jax.default_backend()}, {datetime.date.today()}.",
        "",
        "Medians, and means in brackets. kept: Σ R / f(x). size: Σ|R| / |Σ R|. alike: the correlation of the maps of "
        "the top class and of the runner-up. flipping: the area between the curves (least relevant first, most relevant "
        "first) over f(x); 0 for a random order. *: on the Pareto front of the medians.",
        "",
        f"| composite | | {' | '.join(names)} |",
        f"| --- | --- | {' | '.join('---' for _ in names)} |",
    ]
    for row in result.rows:
        cells = [f"{row.median(m):.3g} ({np.mean(row.values[m]):.3g})" for m in names]
        lines.append(f"| {row.text} | {'*' if row in front else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    for search in [globals()[name] for name in sys.argv[1:]] or [photographs, sentences]:
        text = table(*search())
        print(text)
        (RESULTS / f"tuning_{search.__name__}.md").write_text(text)
