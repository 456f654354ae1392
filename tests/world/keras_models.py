"""Keras's own models and KerasHub's backbones, as they are: `python tests/world/keras_models.py [NAMES OR GLOBS] [--markdown FILE]`.

The weights are random, with noise in biases, scales and the statistics of BatchNorm; the backbones of KerasHub are
small. For each model: `lrpjax.keras.function` computes what the model does, every weighted unit of the plan stands in a
named layer, and then what `check.py` asks of all models: relevance finite and bounded, the same program under jit,
audits that close, input × gradient equal to `jax.grad`'s. With `--quick`, for the large models, only one explanation that
is finite. Prints a row for each and fails if one does. Nothing is downloaded. Wants an environment of its own:

    pip install ".[keras]" keras-hub
"""

# ruff: noqa: E402  (Keras reads the environment when it is imported)

import argparse
import datetime
import fnmatch
import os
import platform
import re
import sys
import time
import warnings

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # keras-hub brings TensorFlow along
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiling is what takes the time
warnings.filterwarnings("ignore")  # of Keras

import check
import jax
import keras
import keras_hub
import numpy as np
from check import IMAGE, TOKENS, Case, image, model, shake, tokens

import lrpjax
import lrpjax.keras
from lrpjax import composites

NAMED = ("dense", "conv")
"""Kinds of units that have to stand in a named layer: those with weights."""

IMAGES = {"epsilon": composites.epsilon(), "epsilon_plus": composites.epsilon_plus()}
TEXTS = {"epsilon": composites.epsilon(), "attnlrp": composites.attnlrp()}


def case(build, x, at=None, given=lambda x: (x,), output=None, **options):
    """A model that is built anew, with other weights, as a function of one array."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    network = build()
    _, params = lrpjax.keras.function(network)
    for variable, value in zip(network.weights, shake(list(params.values())), strict=True):
        variable.assign(value)
    f, params = lrpjax.keras.function(network, output)
    g = lambda x: f(params, *given(x))
    pick = {None: lambda y: y}.get(output, lambda y: y[output])
    inputs = given(x)
    expected = jax.jit(lambda inputs: pick(network(*inputs)))(inputs)
    error = check._difference(jax.jit(g)(x), expected)
    if error > 1e-5:
        raise AssertionError(f"f differs from the model by {error:.1e}")
    kind = IMAGE if at is None else TOKENS
    for unit in lrpjax.plan(g, None, x, **({} if at is None else {"at": at})):
        if unit.kind in NAMED and unit.path.count("/") < 1:
            raise AssertionError(f"{unit.kind} in {unit.path!r} stands in no named layer")
    return Case(g, x, at=at, kind=kind, composites=IMAGES if at is None else TEXTS, **options)


# ------------------------------------------------------------------------------------------- keras.applications

APPLICATIONS = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "NASNetMobile": 32,
}

for _name, _size in APPLICATIONS.items():

    @model(f"keras/{_name}")
    def application(name=_name, size=_size):
        # The logits are explained: the last softmax is left out.
        build = lambda: getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
        )
        pixels = 255.0 if name.startswith(("EfficientNet", "ConvNeXt", "MobileNetV3")) else 2.0
        x = pixels * jax.nn.sigmoid(image(1, size, size, 3)) - (1.0 if pixels == 2.0 else 0.0)
        return case(build, x)


# -------------------------------------------------------------------------------------------- keras_hub backbones

TEXT = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
ENCODER = {**TEXT, "num_heads": 2, "max_sequence_length": 16}
DECODER = {**TEXT, "num_query_heads": 4, "num_key_value_heads": 2}
EMBEDDING = "token_embedding"


def text(*extra, masked=True):
    """The dict of inputs of a backbone, from token numbers."""
    names = {"token_ids": lambda ids: ids, "padding_mask": np.ones_like, "segment_ids": np.zeros_like}
    wanted = ("token_ids", *(["padding_mask"] if masked else []), *extra)
    return lambda ids: (
        {name: ids if name == "token_ids" else names[name](np.empty(ids.shape, "int32")) for name in wanted},
    )


def hub(name, config, given=None, output=None, at=EMBEDDING, x=None):
    @model(f"keras_hub/{name}")
    def backbone():
        build = lambda: getattr(keras_hub.models, f"{name}Backbone")(**config)
        return case(build, tokens(1, 8, 50) if x is None else x, at, given or text(), output)


for _name in ("GPT2", "GPTNeoX"):
    hub(_name, ENCODER)
for _name in ("Roberta", "XLMRoberta", "OPT"):
    hub(_name, ENCODER, at="embeddings/token_embedding")
hub("DistilBert", ENCODER, at="token_and_position_embedding/token_embedding")
hub("DebertaV3", {**ENCODER, "bucket_size": 8})
hub("Bert", ENCODER, text("segment_ids"), "sequence_output")
hub("Albert", {**ENCODER, "embedding_dim": 8}, text("segment_ids"), "sequence_output")
hub("Electra", {**{k: v for k, v in ENCODER.items() if k != "vocabulary_size"}, "vocab_size": 50, "embedding_dim": 8},
    text("segment_ids"), "sequence_output")  # fmt: skip
hub("Bloom", {**TEXT, "num_heads": 2})
for _name in ("Llama", "Llama3", "Mistral", "Qwen", "Phi3"):
    hub(_name, DECODER)
hub("Gemma", {**DECODER, "head_dim": 4})
hub("Mixtral", {**DECODER, "num_experts": 3})
hub("Qwen3", {**DECODER, "head_dim": 4})
hub("Qwen3Moe", {**DECODER, "moe_intermediate_dim": 16, "num_experts": 3, "top_k": 2})
hub(
    "QwenMoe",
    {
        **DECODER,
        "moe_intermediate_dim": 16,
        "shared_expert_intermediate_dim": 16,
        "num_experts": 3,
        "top_k": 2,
    },
)
hub("GptOss", {**DECODER, "num_experts": 3})
hub("Gemma3", {**DECODER, "head_dim": 4, "image_size": 16})
hub("ESM2", {**TEXT, "num_heads": 2, "max_sequence_length": 16}, text(masked=False))
hub("RoformerV2", {**TEXT, "num_heads": 2, "head_size": 8}, text("segment_ids", masked=False))
hub("XLNet", {**TEXT, "num_heads": 2}, text("segment_ids"), at="content_query_embedding/word_embedding")
hub("FNet", {**TEXT, "max_sequence_length": 16}, text("segment_ids", masked=False), "sequence_output")
hub(
    "RWKV7",
    {"vocabulary_size": 50, "num_layers": 2, "hidden_size": 16, "head_size": 8, "intermediate_dim": 32},
)
hub("Falcon", {**TEXT, "num_attention_heads": 4})

PAIR = lambda ids: (
    {
        "encoder_token_ids": ids,
        "encoder_padding_mask": np.ones(ids.shape, "int32"),
        "decoder_token_ids": ids,  # the embedding that is explained is the last one, the decoder's
        "decoder_padding_mask": np.ones(ids.shape, "int32"),
    },
)
hub("T5", {**TEXT, "num_heads": 2}, PAIR, "decoder_sequence_output")
hub("Bart", ENCODER, PAIR, "decoder_sequence_output")
hub(
    "Whisper",
    {
        **TEXT,
        "num_heads": 2,
        "num_mels": 8,
        "max_encoder_sequence_length": 16,
        "max_decoder_sequence_length": 8,
    },
    lambda mels: (
        {
            "encoder_features": mels,
            "decoder_token_ids": np.full((1, 4), 7, "int32"),
            "decoder_padding_mask": np.ones((1, 4), "int32"),
        },
    ),
    "decoder_sequence_output",
    at=None,
    x=image(1, 16, 8),
)

PATCHES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
IMAGE_32 = {"image_shape": (32, 32, 3)}
hub(
    "ViT",
    {**PATCHES, **IMAGE_32, "patch_size": 8, "mlp_dim": 32},
    lambda x: (x,),
    at=None,
    x=image(1, 32, 32, 3),
)
hub(
    "DeiT",
    {**PATCHES, **IMAGE_32, "patch_size": 8, "intermediate_dim": 32},
    lambda x: (x,),
    at=None,
    x=image(1, 32, 32, 3),
)
hub(
    "ResNet",
    {
        **IMAGE_32,
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 16],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    lambda x: (x,),
    at=None,
    x=image(1, 32, 32, 3),
)
hub(
    "VGG",
    {**IMAGE_32, "stackwise_num_repeats": [1, 2], "stackwise_num_filters": [8, 16]},
    lambda x: (x,),
    at=None,
    x=image(1, 32, 32, 3),
)
hub(
    "DenseNet",
    {**IMAGE_32, "stackwise_num_repeats": [2, 3], "growth_rate": 8},
    lambda x: (x,),
    at=None,
    x=image(1, 32, 32, 3),
)
hub(
    "DINOV2",
    {
        **PATCHES,
        **IMAGE_32,
        "patch_size": 8,
        "intermediate_dim": 32,
        "position_embedding_shape": (32, 32, 3),
        "use_mask_token": False,
    },
    lambda x: ({"images": x},),
    at=None,
    x=image(1, 32, 32, 3),
)
hub(
    "DINOV3",
    {**PATCHES, **IMAGE_32, "patch_size": 8, "intermediate_dim": 32, "use_mask_token": False},
    lambda x: ({"pixel_values": x},),
    at=None,
    x=image(1, 32, 32, 3),
)
hub(
    "MiT",
    {
        **IMAGE_32,
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [8, 16],
    },
    lambda x: (x,),
    at=None,
    x=image(1, 32, 32, 3),
)  # fmt: skip
hub(
    "SwinTransformer",
    {**IMAGE_32, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
    lambda x: (x,),
    at=None,
    x=image(1, 32, 32, 3),
)


@model("keras_hub/CLIP")
def clip():
    def build():
        vision = keras_hub.models.CLIPVisionEncoder(
            patch_size=8,
            hidden_dim=16,
            num_layers=2,
            num_heads=2,
            intermediate_dim=32,
            image_shape=(32, 32, 3),
        )
        words = keras_hub.models.CLIPTextEncoder(
            vocabulary_size=50, embedding_dim=16, hidden_dim=16, num_layers=2, num_heads=2, intermediate_dim=32,
            max_sequence_length=8,
        )  # fmt: skip
        return keras_hub.models.CLIPBackbone(vision, words, projection_dim=8)

    given = lambda x: ({"images": x, "token_ids": tokens(1, 8, 50)},)
    return case(build, image(1, 32, 32, 3), None, given, "vision_logits")


def glance(name):
    """A row from one explanation under `epsilon()`, for the large models: the forward value, the names and the plan, and
    relevance that is finite. No audits, no other composites, and no comparison with `jax.grad`."""
    row = check.Row(name)
    try:
        example = check.MODELS[name]()
        plan = lrpjax.plan(example.f, None, example.x)
        row.units, row.unrecognised = len(plan), check.unrecognised(plan)
        row.said.update(plan.notes)
        explain = lrpjax.value_and_relevance(example.f, composites.epsilon(), target=check.largest)
        value, R = jax.jit(explain)(example.x)
        logit = float(np.asarray(check.largest(value)).sum())
        row.ratios["epsilon"] = float(np.abs(R).sum() / abs(logit)), float(R.sum() / logit)
        if not (np.all(np.isfinite(R)) and np.any(R)):
            row.failures.append("relevance is not finite, or nowhere")
    except Exception as error:
        row.failures.append(check._brief(error))
    jax.clear_caches()
    return row


HEAD = (
    "| model | units | unrecognised | ΣR ÷ logit, ε | input × gradient | open in the audits | seconds | |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def line(row, seconds):
    """A row of the table."""
    share = lambda name: f"{row.ratios[name][1]:.3g}" if name in row.ratios else "–"
    strange = ", ".join(f"{n} {kind}" for kind, n in row.unrecognised.items()) or "–"
    rest = f"{max(row.rest.values()):.0e}" if row.rest else "–"
    outcome = "FAILS: " + "; ".join(row.failures) if row.failures else "passes"
    said = "; ".join((outcome, *(f"says {text}" for text in row.said)))
    said = re.sub(
        r"/\S*/site-packages/", "", said.replace("|", "/")
    )  # where packages lie is the machine's matter
    return f"| {row.name} | {row.units} | {strange} | {share('epsilon')} | {share('gradient')} | {rest} | {seconds:.0f} | {said} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"], help="names or globs of models; all without")
    parser.add_argument("--markdown", metavar="FILE", help="write the table to this file as well")
    parser.add_argument("--quick", action="store_true", help="one explanation of each model, without audits")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of every failure")
    options = parser.parse_args()
    names = list(dict.fromkeys(n for g in options.names for n in check.MODELS if fnmatch.fnmatch(n, g)))
    print(HEAD, flush=True)
    lines, passed = [], 0
    for name in names:
        began = time.perf_counter()
        full = lambda name: check.check(name, eager=False, times=False, verbose=options.verbose)
        row = glance(name) if options.quick else full(name)
        lines.append(line(row, time.perf_counter() - began))
        print(lines[-1], flush=True)
        passed += not row.failures
    total = f"{passed} of {len(names)} models pass"
    print(total)
    if options.markdown:
        versions = {"lrpjax": lrpjax, "jax": jax, "keras": keras, "keras-hub": keras_hub}
        about = [str(datetime.date.today()), *(f"{name} {m.__version__}" for name, m in versions.items())]
        about += [f"Python {platform.python_version()}", "CPU, float32"]
        with open(options.markdown, "w") as file:
            file.write(f"# Keras models, explained as they are\n\n{', '.join(about)}. {total}.\n\n")
            file.write(f"{INTRODUCTION}\n\n{HEAD}\n" + "\n".join(lines) + "\n")
    return 0 if passed == len(names) else 1


INTRODUCTION = (
    "What `tests/world/keras_models.py` found: random weights, small inputs, KerasHub's backbones in small\n"
    "configurations. ΣR ÷ logit is what arrives at the input of the explained output, its largest entry, under\n"
    "`epsilon()`; the same for input × gradient. Open in the audits is the largest part of the relevance that the audits of\n"
    "both composites of the kind cannot account for. A model passes if the first lines of the script and of `check.py`\n"
    "hold for it; the last column says what did not, and what lrpjax says of the model. The rows with – under the audits\n"
    "were looked at with `--quick`: the forward value, the names, the plan, and one explanation that is finite. Little\n"
    "arrives in deep networks with random weights, whose biases and BatchNorm take their shares in every layer."
)

if __name__ == "__main__":
    sys.exit(main())
