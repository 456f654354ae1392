"""The order of methods under region perturbation (Samek et al. 2017) on photographs, with EfficientNet-Lite0.

    python tests/papers/photographs.py    # about 12 minutes on one core; needs lrpjax[photo]

Six photographs are few: an interval over them says how sure the order is of photographs such as these.
"""

import jax
import jax.numpy as jnp
from common import against, areas, write

import lrpjax
from lrpjax import composites, gradients, metrics, pretrained

SIZES, STEPS = (16, 32), 7
FILLS = {
    "grey": lambda x, key: 0.0,
    "noise": lambda x, key: metrics.uniform_noise(key, x),
    "blur": lambda x, key: metrics.blur(x, 12.0),
}


def main():
    network = pretrained.lite0()
    f = jax.jit(lambda x: network(x))
    x = jnp.stack([jnp.asarray(pretrained.photograph(image)) for image in pretrained.photographs().values()])
    box = network.low, network.high
    chosen = {
        "LRP-ε": composites.epsilon(),
        "LRP-z⁺, ε in dense": composites.epsilon_plus(),
        "LRP-α2β1, ε in dense": composites.epsilon_alpha2_beta1(),
        "LRP-γ, box first": composites.epsilon_gamma_box(*box),
        "gamma_stages": composites.gamma_stages(*box),
        "gamma_shared": composites.gamma_shared(*box),
        "gradient × input": composites.input_x_gradient(),
        "guided backprop": composites.guided_backprop(),
        "sensitivity": composites.gradient(),
    }
    unsigned = "guided backprop", "sensitivity"
    maps = {}
    for name, composite in chosen.items():
        R = jax.jit(lrpjax.relevance(network, composite, target="max"))(x)
        maps[name] = jnp.abs(R) if name in unsigned else R
    # Of the class at x: along the path another one can be the largest.
    integrated = gradients.integrated_gradients(network, steps=20, target=f(x).argmax(1))
    maps["integrated gradients"] = jax.jit(integrated)(x)

    probability = lambda x: jax.nn.softmax(f(x))
    key = jax.random.key(0)
    tables = {
        "ABPC of the logit, more is better": areas(f, x, maps, FILLS, SIZES, key, steps=STEPS, between=True),
        "AOPC of the probability, more is better": areas(
            probability, x, maps, FILLS, SIZES, key, steps=STEPS
        ),
    }
    findings = [
        f"{heading}. {against(table, [name for name in maps if name != other], other)}"
        for heading, table in tables.items()
        for other in ("random", "sensitivity", "LRP-γ, box first")
    ]
    write(
        "photographs",
        "EfficientNet-Lite0: flipping regions of photographs",
        f"Mean ± 95 % t interval over the {len(x)} photographs of `lrpjax.pretrained`, top class, patches of 16 and 32 pixels, "
        f"{STEPS} steps. ABPC: area between the curves of the least and the most relevant first; that of a random order is 0 by definition, and not measured.",
        tables,
        findings,
    )


if __name__ == "__main__":
    main()
