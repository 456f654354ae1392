"""Sequence models and oddities of other libraries: memax (equinox), RecurrentGemma (linen), penzai, esm2quinox, flowjax, flaxmodels, e3nn-jax,
jraph, stax."""

import e3nn_jax as e3nn
import equinox as eqx
import esm2quinox
import flowjax.bijections
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import jraph
import paramax
from check import GATED, TOKENS, Case, image, model, shake, tokens
from flaxmodels import stylegan2
from jax.example_libraries import stax
from memax.equinox import train_utils as memax
from penzai import pz
from penzai.models.transformer.variants import gpt_neox, llamalike_common
from recurrentgemma import common as gemma
from recurrentgemma.jax import griffin

# ------------------------------------------------------------------------------------------------- memax: recurrences as semigroups, scanned


def _memax(name, kind=TOKENS):
    @model(f"memax/{name}")
    def build():
        net = memax.get_residual_memory_model(name, 6, 16, 5, key=jax.random.key(0))
        arrays, static = eqx.partition(net, eqx.is_inexact_array)
        arrays = shake(arrays)

        def f(x):
            net = eqx.combine(arrays, static)
            start = jnp.zeros(x.shape[0], bool).at[0].set(True)
            return net(net.initialize_carry(), (x, start), jax.random.key(1))[1][-1]

        return Case(f, image(8, 6), kind=kind)


for _name in (
    "FART",
    "FWP",
    "DeltaNet",
    "DeltaProduct",
    "GDN",
    "FFM",
    "S6",
    "PSpherical",
    "LRU",
    "LinearRNN",
    "NMax",
    "Stack",
    "Attention",
):
    _memax(_name)
for _name in ("GRU", "LSTM", "MGU", "Elman", "Spherical"):
    _memax(_name, GATED)

# -------------------------------------------------------------------------------------------------------------------- RecurrentGemma


def _griffin(name, scan):
    @model(f"recurrentgemma/{name}")
    def build():
        kinds = gemma.TemporalBlockType
        config = gemma.GriffinConfig(
            vocab_size=40, width=16, mlp_expanded_width=32, num_heads=2, block_types=(kinds.RECURRENT, kinds.RECURRENT, kinds.ATTENTION),
            embeddings_scale_by_sqrt_dim=True, attention_window_size=4, logits_soft_cap=30.0, lru_width=16, scan_type=scan,
        )  # fmt: skip
        net = griffin.Griffin(config)
        ids, positions = tokens(1, 8, 40), jnp.arange(8)[None]
        params = shake(net.init(jax.random.key(0), ids, positions))

        def apply(params, ids):
            return net.apply(params, ids, positions)[0]

        table = params["params"]["embedder"]["input_embedding"]

        def weights(table):
            inner = {**params["params"], "embedder": {"input_embedding": table}}
            return apply({"params": inner}, ids)

        return Case(
            lambda ids: apply(params, ids),
            ids,
            at="Griffin/embedder.encode",
            kind=TOKENS,
            weights=(weights, table),
        )


_griffin("griffin-linear-scan", gemma.ScanType.LINEAR_NATIVE)
_griffin("griffin-associative-scan", gemma.ScanType.ASSOCIATIVE_NATIVE)


# ---------------------------------------------------------------------------------------------------------------------------- penzai


@model("penzai/llamalike")
def penzai_llama():
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2, query_head_multiplier=2, embedding_dim=16, projection_dim=8, mlp_hidden_dim=32, num_decoder_blocks=2, vocab_size=40,
        mlp_variant="geglu_approx", tie_embedder_and_logits=True, final_logit_softcap=30.0, attn_logits_soft_cap=50.0, use_post_attn_norm=True,
        use_post_ffw_norm=True,
    )  # fmt: skip
    return _penzai(llamalike_common.build_llamalike_transformer(config, jax.random.key(0)))


@model("penzai/gpt-neox-layer-stack")
def penzai_neox():
    config = gpt_neox.GPTNeoXTransformerConfig(
        num_attention_heads=2, embedding_dim=16, projection_dim=8, mlp_hidden_dim=32, num_decoder_blocks=2, vocab_size=40,
        activation_fn="gelu_exact", rope_subset_size=4, rope_wavelength=1e4, layernorm_epsilon=1e-5, parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32, use_layer_stack=True,
    )  # fmt: skip
    return _penzai(gpt_neox.build_gpt_neox_transformer(config, jax.random.key(0)))


def _penzai(net):
    """penzai gives no scopes: the embedding layer is replaced by one that enters a scope of its own."""
    ids = tokens(1, 7, 40)

    @pz.pytree_dataclass(has_implicitly_inherited_fields=True)
    class Scoped(pz.nn.EmbeddingLookup):
        def __call__(self, indices, **side_inputs):
            with jax.named_scope("embedding"):
                return super().__call__(indices, **side_inputs)

    net = pz.select(net).at_instances_of(pz.nn.EmbeddingLookup).apply(lambda layer: Scoped(layer.table))
    net = shake(net)

    def apply(net, ids):
        return net(pz.nx.wrap(ids).tag("batch", "seq")).unwrap("batch", "seq", "vocabulary")

    return Case(lambda ids: apply(net, ids), ids, at="embedding", kind=TOKENS)


# ------------------------------------------------------------------------------------------------------------------ proteins, images, flows


@model("esm2quinox/esm2")
def esm2():
    net = esm2quinox.ESM2(
        num_layers=2, embed_size=16, num_heads=4, token_dropout=False, key=jax.random.key(0)
    )
    arrays, static = eqx.partition(net, eqx.is_inexact_array)
    arrays = shake(arrays)
    f = lambda ids: jax.vmap(eqx.combine(arrays, static))(ids).logits
    return Case(f, tokens(1, 9, 24), at="eqx.nn.Embedding", kind=TOKENS)


@model("flaxmodels/stylegan2-generator")
def stylegan_generator():
    net = stylegan2.Generator(
        resolution=16,
        z_dim=8,
        w_dim=8,
        mapping_layer_features=8,
        num_ws=6,
        num_mapping_layers=2,
        fmap_base=128,
        fmap_max=8,
    )
    z = image(1, 8)
    variables = shake(net.init(jax.random.key(0), z))
    return Case(lambda z: net.apply(variables, z, train=False, noise_mode="const"), z)


@model("flaxmodels/stylegan2-discriminator")
def stylegan_discriminator():
    net = stylegan2.Discriminator(resolution=16, fmap_base=128, fmap_max=8)
    x = image(2, 16, 16, 3)
    variables = shake(net.init(jax.random.key(0), x))
    return Case(lambda x: net.apply(variables, x), x)


def _flow(name, make, **more):
    @model(f"flowjax/{name}")
    def build():
        base = flowjax.distributions.Normal(jnp.zeros(4))
        flow = make(jax.random.key(0), base_dist=base)
        arrays, static = eqx.partition(flow, eqx.is_inexact_array)
        arrays = shake(arrays)
        f = lambda x: paramax.unwrap(eqx.combine(arrays, static)).bijection.inverse(x)
        return Case(f, image(4), note="data to latent", **more)


_flows = flowjax.flows
_flow("coupling-affine", lambda k, **a: _flows.coupling_flow(k, flow_layers=2, nn_width=8, **a))
_flow(
    "coupling-spline",
    lambda k, **a: _flows.coupling_flow(
        k,
        transformer=flowjax.bijections.RationalQuadraticSpline(knots=4, interval=3),
        flow_layers=2,
        nn_width=8,
        **a,
    ),
)
_flow(
    "masked-autoregressive",
    lambda k, **a: _flows.masked_autoregressive_flow(k, flow_layers=2, nn_width=8, invert=True, **a),
)
_flow(
    "triangular-spline",
    lambda k, **a: _flows.triangular_spline_flow(k, flow_layers=2, knots=4, **a),
    expected=("cut: le_to",),  # the knots, which are constants here, are looked up by what lies between them
)
_flow("planar", lambda k, **a: _flows.planar_flow(k, flow_layers=2, invert=True, negative_slope=0.1, **a))


# ------------------------------------------------------------------------------------------------------------------- graphs, geometry, ODEs


def _graph():
    edges = jnp.asarray([[0, 1, 2, 3, 1, 4, 2], [1, 2, 3, 0, 4, 0, 4]])
    return {
        "senders": edges[0],
        "receivers": edges[1],
        "n_node": jnp.asarray([5]),
        "n_edge": jnp.asarray([7]),
    }


def _mlp(key, width, *sizes):
    keys = jax.random.split(jax.random.key(key), len(sizes))
    layers = [
        (jax.random.normal(k, (a, b)) / a**0.5, 0.1 * jax.random.normal(k, (b,)))
        for k, a, b in zip(keys, (width, *sizes), sizes, strict=False)
    ]

    def f(x):
        for i, (w, b) in enumerate(layers):
            x = x @ w + b
            x = jax.nn.relu(x) if i < len(layers) - 1 else x
        return x

    return f


@model("jraph/graph-network")
def graph_network():
    edge, node, out = _mlp(0, 3 + 4 + 4 + 2, 8, 3), _mlp(1, 4 + 3 + 3 + 2, 8, 4), _mlp(2, 4 + 3 + 2, 8, 2)
    net = jraph.GraphNetwork(
        jraph.concatenated_args(edge), jraph.concatenated_args(node), jraph.concatenated_args(out)
    )
    rest = dict(edges=image(7, 3, seed=1), globals=image(1, 2, seed=2), **_graph())

    def f(x):
        graph = net(net(jraph.GraphsTuple(nodes=x, **rest)))
        return graph.globals

    return Case(f, image(5, 4))


@model("jraph/gcn")
def gcn():
    one, two = _mlp(0, 4, 8), _mlp(1, 8, 3)
    rest = dict(edges=None, globals=None, **_graph())

    def f(x):
        graph = jraph.GraphConvolution(one, add_self_edges=True)(jraph.GraphsTuple(nodes=x, **rest))
        graph = graph._replace(nodes=jax.nn.relu(graph.nodes))
        return jraph.GraphConvolution(two, add_self_edges=True)(graph).nodes

    return Case(f, image(5, 4))


@model("jraph/gat")
def gat():
    query, logit, update = _mlp(0, 4, 8), _mlp(1, 16, 1), _mlp(2, 8, 3)
    rest = dict(edges=None, globals=None, **_graph())

    def f(x):
        attend = lambda q, k, e: jax.nn.leaky_relu(logit(jnp.concatenate([q, k], -1)), 0.2)
        net = jraph.GAT(query, attend, lambda nodes: update(jax.nn.elu(nodes)))
        return net(jraph.GraphsTuple(nodes=x, **rest)).nodes

    return Case(f, image(5, 4), kind=TOKENS)


@model("jraph/interaction-network")
def interaction():
    edge, node = _mlp(0, 3 + 4 + 4, 8, 3), _mlp(1, 4 + 3, 8, 4)
    net = jraph.InteractionNetwork(jraph.concatenated_args(edge), jraph.concatenated_args(node))
    rest = dict(edges=image(7, 3, seed=1), globals=None, **_graph())
    return Case(lambda x: net(net(jraph.GraphsTuple(nodes=x, **rest))).nodes, image(5, 4))


@model("e3nn/tensor-product-net")
def equivariant():
    positions = image(5, 3)
    graph = _graph()
    features = e3nn.flax.Linear("8x0e + 4x1o")
    gate = e3nn.flax.Linear("1x0e")

    def build(positions):
        vectors = positions[graph["receivers"]] - positions[graph["senders"]]
        harmonics = e3nn.spherical_harmonics("1x0e + 1x1o", e3nn.IrrepsArray("1o", vectors), normalize=True)
        radial = e3nn.soft_one_hot_linspace(
            jnp.linalg.norm(vectors, axis=1), start=0.0, end=4.0, number=4, basis="smooth_finite", cutoff=True
        )
        return harmonics, radial

    harmonics, radial = build(positions)
    edge = e3nn.concatenate([harmonics, e3nn.IrrepsArray("4x0e", radial)]).regroup()
    params = features.init(jax.random.key(0), edge)
    hidden = features.apply(params, edge)
    last = gate.init(jax.random.key(1), e3nn.tensor_product(hidden, hidden))

    def f(positions):
        harmonics, radial = build(positions)
        edge = features.apply(
            params, e3nn.concatenate([harmonics, e3nn.IrrepsArray("4x0e", radial)]).regroup()
        )
        nodes = e3nn.scatter_sum(edge, dst=graph["receivers"], output_size=5)
        nodes = e3nn.scalar_activation(nodes, [jax.nn.silu, None])
        return gate.apply(last, e3nn.tensor_product(nodes, nodes)).array.sum(0)

    return Case(f, positions, note="spherical harmonics of positions")


# ------------------------------------------------------------------------------------------------------------------------------- stax


@model("stax/resnet")
def stax_resnet():
    def identity(channels):
        main = stax.serial(
            stax.Conv(channels, (1, 1)),
            stax.BatchNorm(),
            stax.Relu,
            stax.Conv(channels, (3, 3), padding="SAME"),
            stax.BatchNorm(),
        )
        return stax.serial(stax.FanOut(2), stax.parallel(main, stax.Identity), stax.FanInSum, stax.Relu)

    init, apply = stax.serial(
        stax.Conv(8, (3, 3), padding="SAME"),
        identity(8),
        stax.MaxPool((2, 2), (2, 2)),
        identity(8),
        stax.AvgPool((2, 2)),
        stax.Flatten,
        stax.Dense(5),
    )
    x = image(2, 8, 8, 3)
    params = shake(init(jax.random.key(0), x.shape)[1])
    return Case(lambda x: apply(params, x), x, note="batch statistics")


@model("stax/softmax-classifier")
def stax_softmax():
    init, apply = stax.serial(
        stax.Dense(8), stax.Gelu, stax.Dense(8), stax.Softplus, stax.Dense(5), stax.LogSoftmax
    )
    x = image(2, 8)
    params = shake(init(jax.random.key(0), x.shape)[1])
    return Case(lambda x: apply(params, x), x, note="ends in log-softmax")
