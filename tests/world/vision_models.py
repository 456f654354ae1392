"""Vision models of three collections, in small configurations: flaim (linen), equimo (equinox), keras.applications (JAX backend)."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import equimo.models
import equinox as eqx
import jax
import keras
from check import TOKENS, Case, calibrate, image, model, shake
from flaim.models.factory import CONFIGS

# ------------------------------------------------------------------------------------------------------------------------------- flaim


def _flaim(name, config, size=32, kind="image", **smaller):
    @model(f"flaim/{name}")
    def build():
        full = {k: v for k, v in CONFIGS[config].items() if k not in ("model_cls", "norm_stats", "n_classes")}
        net = CONFIGS[config]["model_cls"](n_classes=5, **{**full, **smaller})
        x = image(1, size, size, 3)
        variables = shake(jax.jit(net.init)(jax.random.key(0), x))
        if "batch_stats" not in variables:
            return Case(lambda x: net.apply(variables, x), x, kind=kind)
        batch = image(4, size, size, 3, seed=1)
        step = lambda stats: net.apply(
            {**variables, "batch_stats": stats}, batch, training=True, mutable=["batch_stats"]
        )[1]["batch_stats"]
        variables = {**variables, "batch_stats": calibrate(variables["batch_stats"], jax.jit(step))}
        return Case(lambda x: net.apply(variables, x, training=False), x, kind=kind)


FOUR = {"depths": (1, 1, 1, 1)}
_flaim(
    "cait",
    "cait_xxsmall24_224",
    kind=TOKENS,
    depth=2,
    token_dim=16,
    n_heads=2,
    patch_size=8,
    layer_scale_init_value=0.1,
)
_flaim("convmixer", "convmixer32_768d_patch7_kernel7", size=28, depth=3, dim=16)
_flaim("convnext", "convnext_nano", out_dims=(8, 16, 24, 32), layer_scale_init_value=0.1, **FOUR)
_flaim("convnext-v2", "convnextv2_atto_fcmae", out_dims=(8, 16, 24, 32), **FOUR)
_flaim(
    "efficientnet-v2",
    "efficientnetv2_small",
    depths=(1,) * 6,
    out_dims=(8, 8, 16, 16, 24, 24),
    head_conv_bn_act_dim=32,
)
_flaim("gcvit", "gcvit_xxtiny_224", size=64, kind=TOKENS, token_dim=16, n_heads=(1, 2, 2, 4), **FOUR)
_flaim("hornet", "hornet_tiny", out_dim_first_stage=16, layer_scale_init_value=0.1, **FOUR)
_flaim(
    "maxvit",
    "maxvit_tiny_224",
    size=64,
    kind=TOKENS,
    out_dims=(8, 16, 16, 32),
    stem_out_dim=8,
    head_dim=8,
    **FOUR,
)
_flaim(
    "nest",
    "nest_tiny_224",
    size=64,
    kind=TOKENS,
    depths=(1, 1, 1),
    token_dims=(16, 16, 32),
    n_heads=(2, 2, 2),
)
_flaim("pvt-v2", "pvtv2_b0", kind=TOKENS, token_dims=(8, 16, 16, 32), n_heads=(1, 2, 2, 2), **FOUR)
_flaim("regnet-x", "regnetx_200mf", out_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
_flaim("regnet-y", "regnety_200mf", out_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
_flaim("resnet18", "resnet18")
_flaim("resnet50-d", "resnet50d", **FOUR)
_flaim("se-resnet", "seresnet50", **FOUR)
_flaim("eca-resnet", "ecaresnet50_light", **FOUR)
_flaim("resnest", "resnest14_2s1x64d")
_flaim("sk-resnet", "skresnet18", **FOUR)
_flaim("resnext", "resnext50_32x4d", **FOUR)
_flaim(
    "swin", "swin_tiny_window7_224", kind=TOKENS, depths=(2, 2), token_dim=16, n_heads=(2, 2), window_size=4
)
_flaim("van", "van_b0", out_dims=(8, 16, 16, 32), **FOUR)
_flaim("vgg11", "vgg11", out_dims=(8, "m", 16, "m", 16, 16, "m", 32, 32, "m", 32, 32, "m"))
_flaim("vit", "vit_tiny_patch16_224", kind=TOKENS, depth=2, token_dim=16, n_heads=2, patch_size=8)
_flaim("beit", "beit_base_patch16_224", kind=TOKENS, depth=2, token_dim=16, n_heads=2, patch_size=8)
_flaim(
    "deit3",
    "deit3_small_patch16_224",
    kind=TOKENS,
    depth=2,
    token_dim=16,
    n_heads=2,
    patch_size=8,
    layer_scale_init_value=0.1,
)
_flaim("xcit", "xcit_nano12_patch16_224", kind=TOKENS, depth=2, token_dim=16, n_heads=2)

# ------------------------------------------------------------------------------------------------------------------------------ equimo


def _equimo(name, build, size=32, kind="image"):
    @model(f"equimo/{name}")
    def case():
        made = eqx.nn.make_with_state(build)(key=jax.random.key(0), num_classes=5, drop_path_rate=0.0)
        net, state = made
        del state
        arrays, static = eqx.partition(eqx.nn.inference_mode(net), eqx.is_array)
        arrays = shake(arrays)
        f = lambda x: eqx.combine(arrays, static)(x, key=jax.random.key(1), inference=True)
        return Case(f, image(3, size, size), kind=kind)


_m = equimo.models
_equimo(
    "convnext",
    lambda **k: _m.convnext_t(
        **{**k, "dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "layer_scale_init_value": 0.1}
    ),
)
_equimo(
    "mobilenet-v3", lambda **k: _m.mobilenetv3_small(last_channels=32, key=k["key"], num_classes=5), size=128
)
_equimo(
    "iformer",
    lambda **k: _m.iformer_t(**{**k, "depths": [1, 1, 1, 1, 1, 1], "dims": [8, 16, 16, 16, 16, 32]}),
    size=128,
    kind=TOKENS,
)
_equimo(
    "lowformer",
    lambda **k: _m.lowformer_backbone_b0(**{**k, "depths": [0, 1, 1, 1, 1], "attention_type": "softmax"}),
    size=64,
    kind=TOKENS,
)
_equimo(
    "reduceformer",
    lambda **k: _m.reduceformer_backbone_b1(
        **{**k, "depths": [1, 1, 1, 1, 1], "widths": [8, 16, 16, 32, 32]}
    ),
    size=64,
)
_equimo("mlla", lambda **k: _m.Mlla(32, 3, dim=16, depths=[1, 1], num_heads=[2, 2], **k), kind=TOKENS)
_equimo(
    "vssd",
    lambda **k: _m.Vssd(
        32,
        3,
        dim=16,
        d_state=8,
        depths=[1, 1],
        num_heads=[2, 2],
        attentions_layers=("mamba2mixer", "attention"),
        **k,
    ),
    kind=TOKENS,
)
_equimo(
    "vit-registers", lambda **k: _m.VisionTransformer(32, 3, 16, 8, 2, [2], reg_tokens=2, **k), kind=TOKENS
)
_equimo(
    "vit-swiglu-rope-qknorm",
    lambda **k: _m.VisionTransformer(
        32,
        3,
        16,
        8,
        2,
        [2],
        ffn_layer="swiglu",
        qk_norm=True,
        use_global_pos_embed=False,
        use_local_pos_embed=True,
        **k,
    ),
    kind=TOKENS,
)
_equimo(
    "dinov3",
    lambda **k: _m.VisionTransformer(32, 3, 16, 8, 2, [2], ffn_layer="swiglu", init_values=0.1, **k),
    kind=TOKENS,
)

# ------------------------------------------------------------------------------------------------------------------------------- keras


def _keras(name, build, size=32):
    @model(f"keras/{name}")
    def case():
        return _stateless(build, image(1, size, size, 3), image(4, size, size, 3, seed=1))


def _stateless(build, x, batch, kind="image"):
    """A Keras model as a function of x, with running statistics of a batch."""
    keras.utils.set_random_seed(0)
    net = build()
    trainable = shake([v.value for v in net.trainable_variables])
    fixed = [v.value for v in net.non_trainable_variables]
    moving = [v.name.startswith("moving") for v in net.non_trainable_variables]

    def step(moved):
        moved = iter(moved)
        mixed = [next(moved) if m else a for a, m in zip(fixed, moving, strict=True)]
        new = net.stateless_call(trainable, mixed, batch, training=True)[1]
        return [a for a, m in zip(new, moving, strict=True) if m]

    moved = iter(calibrate([a for a, m in zip(fixed, moving, strict=True) if m], jax.jit(step)))
    fixed = [next(moved) if m else a for a, m in zip(fixed, moving, strict=True)]
    return Case(lambda x: net.stateless_call(trainable, fixed, x, training=False)[0], x, kind=kind)


def _application(name, size=32, **options):
    common = {"weights": None, "classes": 5, "classifier_activation": None, "input_shape": (size, size, 3)}
    if name.startswith(("EfficientNetV2", "ConvNeXt", "MobileNetV3")):
        common["include_preprocessing"] = False
    _keras(name, lambda: getattr(keras.applications, name)(**common, **options), size)


_application("MobileNet", alpha=0.25)
_application("MobileNetV2", alpha=0.35)
_application("MobileNetV3Small", alpha=0.75)
_application("EfficientNetB0")
_application("EfficientNetV2B0")
_application("DenseNet121")
_application("ConvNeXtTiny")
_application("ResNet50")
_application("ResNet50V2")
_application("VGG16")
_application("Xception", 71)
_application("InceptionV3", 75)
_application("InceptionResNetV2", 75)
_application("NASNetMobile")


K = keras.layers


@model("keras/lstm-bidirectional")
def keras_lstm():
    return _sequence(lambda x: K.Dense(4)(K.Bidirectional(K.LSTM(8))(K.LSTM(8, return_sequences=True)(x))))


@model("keras/gru")
def keras_gru():
    return _sequence(lambda x: K.Dense(4)(K.GRU(8)(x)))


@model("keras/attention-gqa")
def keras_attention():
    def body(x):
        h = K.LayerNormalization()(x)
        x = K.Add()([x, K.GroupQueryAttention(4, 4, 2)(h, h)])
        return K.Dense(4)(K.GlobalAveragePooling1D()(K.Dense(12, "gelu")(K.UnitNormalization()(x))))

    return _sequence(body, kind=TOKENS)


@model("keras/conv-zoo")
def keras_layers():
    def body(x):
        x = K.Conv1D(8, 3, padding="same", activation="mish")(x)
        x = K.SeparableConv1D(8, 3, activation="selu")(x)
        x = K.GroupNormalization(4)(K.Conv1DTranspose(8, 3, activation="softplus")(x))
        x = K.SpatialDropout1D(0.5)(K.PReLU()(K.UpSampling1D(2)(x)))
        x = K.AveragePooling1D(2)(K.MaxPooling1D(2)(K.Activation("hard_swish")(x)))
        return K.Dense(4)(K.Flatten()(K.Activation("softsign")(K.EinsumDense("abc,cd->abd", (None, 8))(x))))

    return _sequence(body)


def _sequence(body, kind="image"):
    def build():
        inputs = keras.Input((8, 12))
        return keras.Model(inputs, body(inputs))

    return _stateless(build, image(2, 8, 12), image(4, 8, 12, seed=1), kind)
