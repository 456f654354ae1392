"""The NNX zoo "bonsai" (github.com/jax-ml/bonsai), in small configurations: give a checkout of it in PYTHONPATH.

It has no release among the packages of PyPI (what is called so there is something else), so its models are listed only where it can be imported.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from check import TOKENS, Case, calibrate, image, model, shake, tokens
from flax import nnx

V, D, H, T = 40, 32, 4, 8  # vocabulary, width, heads, length


def _modeling(name):
    return importlib.import_module(f"bonsai.models.{name}.modeling")


def _bonsai(name, kind="image"):
    """Registers a builder of a network, which gives (network, its function of x, x); its running statistics are those of x."""

    def register(build):
        @model(f"bonsai/{name}")
        def case():
            net, f, x, *more = build(_modeling(name))
            options = dict(*more)
            train = options.pop("train", f)
            graph, params, statistics, rest = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
            params = shake(params)
            if jax.tree.leaves(statistics):
                statistics = calibrate(statistics, _step(graph, params, rest, train, x))
            return Case(
                lambda x: f(nnx.merge(graph, params, statistics, rest), x),
                x,
                kind=kind,
                **options,
            )

        return case

    return register


def _step(graph, params, rest, train, x):
    """The running statistics after one step in training mode."""

    def update(statistics):
        net = nnx.merge(graph, params, statistics, rest, copy=True)
        for _, module in nnx.iter_modules(net):
            if isinstance(module, nnx.BatchNorm):
                module.use_running_average = False
        train(net, x)
        return nnx.state(net, nnx.BatchStat)

    return update


def rngs():
    return nnx.Rngs(0)


@_bonsai("convnext")
def convnext(m):
    cfg = m.ModelConfig(
        stage_depths=(1, 1, 2, 1),
        stage_dims=(8, 16, 16, 32),
        drop_path_rate=0.0,
        num_classes=5,
        layer_scale_init_value=1.0,
    )
    return (
        m.ConvNeXt(cfg, rngs=rngs()),
        lambda net, x: net(x, rngs=None, train=False),
        image(1, 32, 32, 3),
    )


@_bonsai("densenet121")
def densenet(m):
    net = m.DenseNet(m.ModelConfig(num_classes=5, dense_block_layers=[2, 2], growth_rate=4), rngs=rngs())
    net.eval()
    return net, lambda net, x: net(x), image(1, 32, 32, 3)


@_bonsai("efficientnet")
def efficientnet(m):
    net = m.EfficientNet(dataclasses.replace(m.ModelConfig.b0(num_classes=5), dropout_rate=0.0), rngs=rngs())
    net.eval()
    return (
        net,
        lambda net, x: net(x, training=False),
        image(2, 64, 64, 3),
        {"train": lambda net, x: net(x, training=True)},
    )


@_bonsai("resnet")
def resnet(m):
    net = m.ResNet(m.ModelConfig([1, 1, 1, 1], num_classes=5), rngs=rngs())
    return net, lambda net, x: net(x), image(1, 32, 32, 3)


@_bonsai("vgg19")
def vgg(m):
    net = m.VGG(
        m.ModelConfig(num_classes=5, block_layers=[1, 1, 1, 1, 1], channels=[4, 8, 8, 8, 8, 16]), rngs=rngs()
    )
    net.eval()
    return net, lambda net, x: net(x), image(1, 32, 32, 3)


@_bonsai("unet")
def unet(m):
    net = m.UNet(m.ModelConfig(in_channels=3, features=(4, 8, 16, 32, 64)), rngs=rngs())
    net.eval()
    return net, lambda net, x: net(x).mean((1, 2)), image(1, 32, 32, 3)


@_bonsai("vae")
def vae(m):
    net = m.VAE(m.ModelConfig((8, 8), latent_channels=2, norm_num_groups=4), rngs=rngs())
    return net, lambda net, x: net(x).mean((1, 2)), image(1, 16, 16, 3)


@_bonsai("vit")
def vit(m):
    cfg = m.ModelConfig((16, 16), (8, 8), 3, D, 0.0, 0.0, H, 2 * D, 1e-6, 2, 5)
    return m.ViTClassificationModel(cfg, rngs=rngs()), lambda net, x: net(x, rngs=None), image(1, 16, 16, 3)


@_bonsai("dinov3")
def dinov3(m):
    cfg = m.ModelConfig(
        patch_size=(8, 8),
        hidden_size=D,
        intermediate_size=2 * D,
        num_hidden_layers=2,
        num_attention_heads=H,
        image_size=16,
    )
    net = m.Dinov3ViTModel(cfg, rngs=rngs())
    return net, lambda net, x: net(x)["pooler_output"], image(1, 3, 16, 16)


@_bonsai("vjepa2")
def vjepa2(m):
    cfg = m.ModelConfig(
        patch_size=8,
        crop_size=16,
        frames_per_clip=4,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=2.0,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_pooler_layers=1,
        num_labels=5,
    )
    net = m.VJEPA2ForVideoClassification(cfg, rngs=rngs())
    return net, lambda net, x: net(x)["logits"], image(1, 4, 16, 16, 3)


@_bonsai("qwen3", TOKENS)
def qwen3(m):
    cfg = m.ModelConfig(
        num_layers=2,
        vocab_size=V,
        emb_dim=D,
        mlp_dim=2 * D,
        num_heads=H,
        head_dim=D // H,
        num_kv_heads=2,
        rope_theta=10_000,
        rope_scaling_factor=None,
        local_rope_theta=None,
        norm_eps=1e-6,
        tie_word_embeddings=True,
    )
    ids = tokens(1, T, V)

    def f(net, ids):
        cache = m.init_cache(cfg, 1, T, 0, dtype=jnp.float32)
        return net(ids, cache=cache, segment_ids=jnp.ones_like(ids))[:, -1]

    return (
        m.Qwen3(cfg, rngs=rngs()),
        f,
        ids,
        {
            "at": "layers/0",
            "note": "explained behind its first block: the table is looked up outside of every module",
        },
    )


@_bonsai("gemma3", TOKENS)
def gemma3(m):
    vision = m.VisionConfig(0.0, D, 16, 2 * D, 1e-6, H, 3, 1, 8, False)
    text = m.TextConfig(
        attention_bias=False,
        attention_dropout=0.0,
        head_dim=8,
        hidden_size=D,
        intermediate_size=2 * D,
        layer_types=[m.AttentionMode.SLIDE, m.AttentionMode.FULL],
        max_position_embeddings=64,
        num_attention_heads=H,
        num_hidden_layers=2,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_full_factor=8.0,
        rope_full_theta=1e6,
        rope_slide_factor=1.0,
        rope_slide_theta=1e4,
        sliding_window=4,
        vocab_size=V,
        norm_dtype=jnp.float32,
    )
    cfg = m.ModelConfig(vision, text, 4, "float32", None)
    ids = tokens(1, T, V)

    def f(net, pixels):
        cache = m.init_cache(cfg, 1, T, 0, jnp.float32)
        types = jnp.zeros_like(ids).at[:, 1:5].set(1)
        return net(ids, pixels, cache=cache, segment_ids=jnp.ones_like(ids), token_type_ids=types)[:, -1]

    return m.Gemma3Model(cfg, rngs=rngs()), f, image(1, 16, 16, 3)


@_bonsai("mamba2", "gated")
def mamba2(m):
    net = m.Mamba2Forecaster(
        3,
        d_model=16,
        n_layers=2,
        forecast_horizon=2,
        d_state=8,
        headdim=8,
        chunk_size=4,
        rngs=rngs(),
    )
    return net, lambda net, x: net(x).reshape(1, -1), image(1, T, 3)


@_bonsai("llada", TOKENS)
def llada(m):
    cfg = m.ModelConfig(
        dtype=jnp.float32,
        d_model=D,
        n_heads=H,
        n_kv_heads=H,
        n_layers=2,
        embedding_dropout=0.0,
        max_sequence_length=16,
        rope_theta=1e4,
        include_qkv_bias=False,
        include_bias=False,
        vocab_size=V,
        embedding_size=V,
        mlp_hidden_size=2 * D,
        shd_cfg=m.ShardingConfig.no_sharding(),
        return_hidden_states=False,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    with jax.set_mesh(mesh):
        net = m.LLaDAModel(cfg, rngs=rngs())

    def f(net, x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return _logits(net(x, jnp.ones_like(x), jax.random.key(0)))

    return net, f, tokens(1, T, V), {"at": "wte"}


@_bonsai("umt5", TOKENS)
def umt5(m):
    cfg = m.ModelConfig(
        vocab_size=V,
        d_model=D,
        d_kv=8,
        d_ff=2 * D,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=H,
        dropout_rate=0.0,
    )
    net = m.UMT5Model(cfg, rngs=rngs())
    ids = tokens(1, T, V)
    mask = jnp.ones_like(ids)

    def f(net, ids):
        return _logits(
            net(ids, attention_mask=mask, decoder_input_ids=ids[:, :3], decoder_attention_mask=mask[:, :3])
        )

    return net, f, ids, {"at": "encoder/embed_tokens"}


def _logits(out):
    """The array of an output, be it one, or the field of a record."""
    out = getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple) else out
    return np.asarray(out) if isinstance(out, float) else out[:, -1] if out.ndim == 3 else out


try:
    importlib.import_module("bonsai.models")
except ImportError:
    import check

    for name in [n for n in check.MODELS if n.startswith("bonsai/")]:
        del check.MODELS[name]
