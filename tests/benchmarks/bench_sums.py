"""How residual sums should share relevance: `python tests/benchmarks/bench_sums.py [resnet18 resnet50 resnet101] [--epochs 4]`.

Prints Σ|R| / |ΣR| at the input of each ResNet, for every composite and, for some, every choice of `rules.Sum`, with random weights and after training on
the digits of scikit-learn (as 32×32 images): the median over 32 images and, behind it, the largest. 1 is relevance of one sign; a number
beyond 100 is an explosion, in which positive and negative relevance cancel. Also |ΣR| / |logit|, which a rule that conserves keeps near 1.
"""

import argparse

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
from sklearn.datasets import load_digits

import lrpjax
from lrpjax import composites, rules, select

COMPOSITES = {
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": composites.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(0.0, 1.0),
    "excitation_backprop": composites.excitation_backprop(),
    "deep_taylor": composites.deep_taylor(),
}
SUMS = {
    "preset": None,
    "native": rules.Sum("native"),
    "magnitude": rules.Sum("magnitude"),
    "uniform": rules.Sum("uniform"),
    "skip": rules.Sum(0),
    "branch": rules.Sum(1),
}


def images():
    digits = load_digits()
    x = jax.image.resize(
        jnp.asarray(digits.images / 16.0, jnp.float32), (len(digits.images), 32, 32), "linear"
    )
    return jnp.repeat(x[..., None], 3, -1), jnp.asarray(digits.target)


def trained(model, variables, x, labels, epochs):
    """The variables after some epochs of Adam, and the accuracy on the last 297 images."""
    optimiser = optax.adam(1e-3)
    state = optimiser.init(variables["params"])

    @jax.jit
    def step(variables, state, x, labels):
        def loss(params):
            logits, changed = model.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed

        grads, changed = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimiser.update(grads, state)
        return {"params": optax.apply_updates(variables["params"], updates), **changed}, state

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(1500)
        for rows in order[: 1500 // 60 * 60].reshape(-1, 60):
            variables, state = step(variables, state, x[rows], labels[rows])
    logits = jax.jit(model.apply)(variables, x[1500:])
    return variables, float((logits.argmax(-1) == labels[1500:]).mean())


VARIED = ("epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box")
"""The composites that are shown with every choice; the others with their own alone."""


def explain(model, composite, rule):
    """(variables, x) -> (output, relevance), with a rule for residual sums in place of the composite's own."""
    if rule is not None:
        pairs = [(s, r) for s, r in composite.pairs if not isinstance(r, rules.Norm)]
        pooling = (select.kind("pool") & ~select.kind("max_pool"), rules.Norm(1e-6))
        composite = lrpjax.Composite([(select.kind("sum"), rule), *pairs, pooling], default=composite.default)
    both = lambda v, x: lrpjax.value_and_relevance(lambda x: model.apply(v, x), composite, target="max")(x)
    return jax.jit(both)


def cell(run, variables, x):
    y, R = run(variables, x)
    total, size = np.asarray(R.sum((1, 2, 3)), float), np.asarray(jnp.abs(R).sum((1, 2, 3)), float)
    spread, kept = size / np.abs(total), np.abs(total / np.asarray(y.max(-1)))
    return f"{np.median(spread):.3g} ({spread.max():.3g}) {np.median(kept):.2g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(networks.RESNETS))
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    x, labels = images()
    for name in args.networks:
        model = networks.RESNETS[name](10)
        random = jax.jit(model.init)(jax.random.key(0), x[:1])
        after, accuracy = trained(model, random, x, labels, args.epochs)
        weights = {"random weights": random, f"trained, test accuracy {accuracy:.1%}": after}
        print(f"\n{name}: Σ|R| / |ΣR|, median (largest), and |ΣR| / |logit|")
        print("composite".ljust(27) + "sums".ljust(11) + "".join(w.rjust(32) for w in weights))
        for c, composite in COMPOSITES.items():
            for choice, rule in SUMS.items():
                if rule is None or c in VARIED:
                    run = explain(model, composite, rule)
                    cells = [cell(run, v, x[1500:1532]).rjust(32) for v in weights.values()]
                    print(c.ljust(27) + choice.ljust(11) + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
