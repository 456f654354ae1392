"""PyTorch models in small configurations, with weights as after some training: what `torch_models.py` explains.

Files of the zoo import their collections where they build a model, so that one that is missing leaves out its own.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

IMAGE, TOKENS, GATED = "image", "tokens", "gated"

MODELS: dict[str, Callable[[], "Network"]] = {}
"""Name -> builder, filled by `model` and `several`."""


@dataclasses.dataclass
class Network:
    """One model and what is asked of it.

    module: in evaluation mode. inputs: {argument of forward: tensor}, in the order in which the function takes them; the
    first one is explained. at: the qualified name of the module at whose output the explanation is made instead, as
    token numbers carry no relevance. kind: IMAGE models are explained with z⁺ in convolutions, TOKENS models with AttnLRP,
    GATED recurrences with MambaLRP. output: which output, as `lrpjax.torch.function` takes it. peers: {name of a peer and
    of its method: what `torch_peers.py` needs to run it}. fixed: arguments that hold no tensors. note: what to know when
    reading the row. expected: parts of the plan's notes that are right for this model. dtype: float32 where torch has no
    float64 of an operation.
    """

    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    at: str | None = None
    kind: str = IMAGE
    output: Any = None
    peers: dict[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    expected: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64


def model(name: str) -> Callable:
    """Registers a builder of a Network under a name."""

    def register(build: Callable[[], Network]) -> Callable[[], Network]:
        if name in MODELS:
            raise ValueError(f"two models are called {name!r}")
        MODELS[name] = build
        return build

    return register


def several(prefix: str, rows: Mapping[str, Any], build: Callable[..., Network]) -> None:
    """Registers `build(*row)` for each row, under the prefix and the row's name."""
    for name, row in rows.items():
        model(f"{prefix}/{name}")(lambda row=row: build(*row) if isinstance(row, tuple) else build(row))


def build(name: str) -> Network:
    """The network of this name: the same weights and inputs in every process."""
    torch.manual_seed(0)
    network = MODELS[name]()
    double = lambda v: v.double() if v.is_floating_point() else v
    network.inputs = {k: double(v) for k, v in network.inputs.items()}
    train(network)
    if network.dtype != torch.float64:
        network.module.to(network.dtype)
        cast = lambda v: v.to(network.dtype) if v.is_floating_point() else v
        network.inputs = {k: cast(v) for k, v in network.inputs.items()}
    return network


def train(network: Network) -> None:
    """Weights of the size that training leaves: what initialisers set to a constant (biases, scales) gets noise, matrices
    that they make tiny keep the size of what they are given, and BatchNorm knows statistics near those of the input."""
    module = network.module.double()
    generator = torch.Generator().manual_seed(1)
    noise = lambda p: torch.randn(p.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter in filter(torch.Tensor.numel, module.parameters()):
            first = parameter.flatten()[0]
            if bool((parameter == first).all()):
                spread = 0.1 * noise(parameter)
                parameter.copy_(spread if first == 0 else first * spread.exp())
            elif parameter.ndim > 1:
                fan_in = parameter[0].numel() if parameter.ndim != 2 else min(parameter.shape)
                size = parameter.std() * fan_in**0.5
                if size < 0.3:
                    parameter.mul_(1 / size)
        norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        if norms:
            for norm in norms:
                norm.momentum = None
            batch = {k: torch.cat([v, *(noise(v) for _ in range(3))]) for k, v in network.inputs.items()}
            module.train()(**batch, **network.fixed)
        for norm in norms:
            norm.running_mean += 0.1 * noise(norm.running_mean) * norm.running_var.sqrt()
            norm.running_var *= (0.1 * noise(norm.running_var)).exp()
    module.eval()


def image(size: int, batch: int = 1, channels: int = 3) -> torch.Tensor:
    """Standard normal noise, as normalised images are."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(2))


def tokens(length: int, vocabulary: int, batch: int = 1) -> torch.Tensor:
    """Token numbers from 3 on (0 to 2 are padding, start and end in many vocabularies)."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------------------------------------------- torchvision


def _torchvision(name: str, size: int, kind: str = IMAGE, peer: Any = None, **options: Any) -> Network:
    import torchvision

    made = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    return Network(made, {"x": image(size)}, kind=kind, peers=peer or {}, expected=())


ZENNIT = {"zennit": ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox", "EpsilonAlpha2Beta1")}

several(
    "torchvision",
    {
        name: (name, size)
        for name, size in {
            "squeezenet1_1": 64,
            "densenet121": 64,
            "mobilenet_v2": 64,
            "mobilenet_v3_small": 64,
            "efficientnet_b0": 64,
            "efficientnet_v2_s": 64,
            "convnext_tiny": 64,
            "regnet_y_400mf": 64,
            "regnet_x_400mf": 64,
            "shufflenet_v2_x0_5": 64,
            "mnasnet0_5": 64,
            "resnext50_32x4d": 32,
            "wide_resnet50_2": 32,
        }.items()
    },
    _torchvision,
)
several(
    "torchvision",
    {
        name: (name, size, IMAGE, ZENNIT)
        for name, size in {
            "alexnet": 64,
            "vgg11": 32,
            "vgg16_bn": 32,
            "resnet18": 64,
            "resnet50": 64,
        }.items()
    },
    _torchvision,
)


@model("torchvision/googlenet")
def googlenet() -> Network:
    import torchvision

    made = torchvision.models.googlenet(weights=None, num_classes=10, aux_logits=False, init_weights=False)
    return Network(made, {"x": image(64)})


@model("torchvision/inception_v3")
def inception_v3() -> Network:
    import torchvision

    made = torchvision.models.inception_v3(weights=None, num_classes=10, aux_logits=False, init_weights=False)
    return Network(made, {"x": image(80)})


@model("torchvision/vit")
def vit() -> Network:
    from torchvision.models import VisionTransformer

    made = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10)
    return Network(
        made,
        {"x": image(32)},
        kind=TOKENS,
        peers={"lxt": ("torchvision.models.vision_transformer", "cp_lrp")},
    )


@model("torchvision/swin")
def swin() -> Network:
    from torchvision.models.swin_transformer import SwinTransformer

    made = SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10)
    return Network(made, {"x": image(32)}, kind=TOKENS)


@model("torchvision/swin_v2")
def swin_v2() -> Network:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    made = SwinTransformer(
        [4, 4],
        16,
        [2, 2],
        [2, 4],
        [4, 4],
        num_classes=10,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )
    return Network(made, {"x": image(32)}, kind=TOKENS)


@model("torchvision/maxvit")
def maxvit() -> Network:
    from torchvision.models.maxvit import MaxVit

    made = MaxVit((32, 32), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=10)
    return Network(made, {"x": image(32)}, kind=TOKENS)


@model("torchvision/fcn_resnet50")
def fcn() -> Network:
    import torchvision

    made = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)
    return Network(made, {"x": image(32)}, output="out")


# ------------------------------------------------------------------------------------------------------ transformers

V, D, H, L, F, T = 40, 32, 4, 2, 64, 9  # vocabulary, width, heads, layers, inner width, length

DECODER = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": 2,
    "intermediate_size": F,
    "max_position_embeddings": 32,
    "head_dim": D // H,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "intermediate_size": F,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "intermediate_size": F,
    "image_size": 32,
    "patch_size": 8,
}


def _made(cls: str, config: str, options: Mapping[str, Any], attention: str | None = None) -> torch.nn.Module:
    import transformers

    made = getattr(transformers, config)(**options)
    if attention is not None:
        made._attn_implementation = attention
    return getattr(transformers, cls)(made)


def _text(
    cls: str,
    config: str,
    at: str,
    options: Mapping[str, Any],
    attention: str | None = None,
    peers: Any = None,
    kind: str = TOKENS,
    note: str = "",
    dtype: torch.dtype = torch.float64,
    expected: tuple[str, ...] = (),
) -> Network:
    made = _made(cls, config, options, attention)
    return Network(
        made,
        {"input_ids": tokens(T, V)},
        at=at,
        kind=kind,
        peers=peers or {},
        note=note,
        fixed=_uncached(made),
        dtype=dtype,
        expected=expected,
    )


def _uncached(made: Any) -> dict[str, Any]:
    return {"use_cache": False} if "use_cache" in inspect.signature(made.forward).parameters else {}


def _lxt(name: str, *methods: str) -> dict[str, Any]:
    return {"lxt": (f"transformers.models.{name}.modeling_{name}", *methods)}


TABLE = "model.embed_tokens"
LLAMA = ("LlamaForCausalLM", "LlamaConfig", TABLE, DECODER)
SLIDING = {**DECODER, "sliding_window": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SINGLE = (None, None, TOKENS, "", torch.float32)  # torch multiplies matrices of experts in float32 alone
GEMMA = {**SLIDING, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}
BERT = "bert.embeddings.word_embeddings"

several(
    "transformers",
    {
        "llama": (*LLAMA, None, _lxt("llama", "attnlrp", "cp_lrp")),
        "llama-eager": (*LLAMA, "eager", _lxt("llama", "attnlrp")),
        "qwen2": (
            "Qwen2ForCausalLM",
            "Qwen2Config",
            TABLE,
            DECODER,
            None,
            _lxt("qwen2", "attnlrp", "cp_lrp"),
        ),
        "qwen3": (
            "Qwen3ForCausalLM",
            "Qwen3Config",
            TABLE,
            DECODER,
            None,
            _lxt("qwen3", "attnlrp", "cp_lrp"),
        ),
        "gpt2": (
            "GPT2LMHeadModel",
            "GPT2Config",
            "transformer.wte",
            {
                "vocab_size": V,
                "n_embd": D,
                "n_layer": L,
                "n_head": H,
                "n_positions": 32,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            None,
            _lxt("gpt2", "attnlrp", "cp_lrp"),
        ),
        "gemma3": (
            "Gemma3ForCausalLM",
            "Gemma3TextConfig",
            TABLE,
            GEMMA,
            None,
            _lxt("gemma3", "attnlrp", "cp_lrp"),
        ),
        "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", TABLE, GEMMA, "eager"),
        "mistral": ("MistralForCausalLM", "MistralConfig", TABLE, SLIDING),
        "phi3": ("Phi3ForCausalLM", "Phi3Config", TABLE, DECODER),
        "mixtral": ("MixtralForCausalLM", "MixtralConfig", TABLE, {**SLIDING, **EXPERTS}, *SINGLE),
        "qwen3-moe": (
            "Qwen3MoeForCausalLM",
            "Qwen3MoeConfig",
            TABLE,
            {
                **DECODER,
                "moe_intermediate_size": 16,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "norm_topk_prob": True,
            },
            *SINGLE,
        ),
        "olmo2": (
            "Olmo2ForCausalLM",
            "Olmo2Config",
            TABLE,
            {k: v for k, v in DECODER.items() if k != "head_dim"},
        ),
        "gpt-oss": (
            "GptOssForCausalLM",
            "GptOssConfig",
            TABLE,
            {**GEMMA, **EXPERTS},
            "eager",
            *SINGLE[1:],
            ("cut: top_k", "cut: sort"),
        ),
        "gpt-neox": (
            "GPTNeoXForCausalLM",
            "GPTNeoXConfig",
            "gpt_neox.embed_in",
            {k: v for k, v in DECODER.items() if k not in ("head_dim", "num_key_value_heads")},
        ),
        "opt": (
            "OPTForCausalLM",
            "OPTConfig",
            "model.decoder.embed_tokens",
            {
                "vocab_size": V,
                "hidden_size": D,
                "num_hidden_layers": L,
                "num_attention_heads": H,
                "ffn_dim": F,
                "max_position_embeddings": 32,
                "word_embed_proj_dim": D,
                "pad_token_id": 0,
            },
        ),
        "bloom": (
            "BloomForCausalLM",
            "BloomConfig",
            "transformer.word_embeddings",
            {"vocab_size": V, "hidden_size": D, "n_layer": L, "n_head": H},
        ),
        "bert-eager": ("BertForSequenceClassification", "BertConfig", BERT, ENCODER, "eager"),
        "bert-mlm": ("BertForMaskedLM", "BertConfig", BERT, ENCODER),
        "roberta": (
            "RobertaForSequenceClassification",
            "RobertaConfig",
            "roberta.embeddings.word_embeddings",
            ENCODER,
        ),
        "distilbert": (
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            "distilbert.embeddings.word_embeddings",
            {
                "vocab_size": V,
                "dim": D,
                "n_layers": L,
                "n_heads": H,
                "hidden_dim": F,
                "max_position_embeddings": 32,
            },
        ),
        "electra": (
            "ElectraForSequenceClassification",
            "ElectraConfig",
            "electra.embeddings.word_embeddings",
            {**ENCODER, "embedding_size": 16},
        ),
        "deberta-v2": (
            "DebertaV2ForSequenceClassification",
            "DebertaV2Config",
            "deberta.embeddings.word_embeddings",
            {
                **ENCODER,
                "relative_attention": True,
                "position_buckets": 8,
                "pos_att_type": ["p2c", "c2p"],
                "norm_rel_ebd": "layer_norm",
                "share_att_key": True,
                "type_vocab_size": 0,
            },
        ),
        "modernbert": (
            "ModernBertForSequenceClassification",
            "ModernBertConfig",
            "model.embeddings.tok_embeddings",
            {
                **ENCODER,
                "local_attention": 4,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "cls_token_id": 1,
                "sep_token_id": 2,
            },
        ),
        "mamba": (
            "MambaForCausalLM",
            "MambaConfig",
            "backbone.embeddings",
            {"vocab_size": V, "hidden_size": D, "num_hidden_layers": L, "state_size": 4, "pad_token_id": 0},
            None,
            None,
            GATED,
        ),
        "mamba2": (
            "Mamba2ForCausalLM",
            "Mamba2Config",
            "backbone.embeddings",
            {
                "vocab_size": V,
                "hidden_size": D,
                "num_hidden_layers": L,
                "state_size": 8,
                "num_heads": 8,
                "head_dim": 8,
                "n_groups": 2,
                "chunk_size": 4,
                "expand": 2,
                "pad_token_id": 0,
            },
            None,
            None,
            GATED,
        ),
    },
    _text,
)


@model("transformers/llama-padded")
def llama_padded() -> Network:
    network = _text(*LLAMA)
    ids = tokens(T, V, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return dataclasses.replace(network, inputs={"input_ids": ids, "attention_mask": mask})


@model("transformers/bert")
def bert() -> Network:
    made = _made("BertForSequenceClassification", "BertConfig", ENCODER)
    peers = _lxt("bert", "attnlrp")
    return Network(Masked(made), {"input_ids": tokens(T, V)}, at=f"model.{BERT}", kind=TOKENS, peers=peers)


class Masked(torch.nn.Module):
    """BERT with a mask that stays the same: that of transformers 4 looks whether anything is masked."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model
        self.mask = torch.ones(1, T, dtype=torch.long)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=self.mask).logits


@model("transformers/bert-embeds")
def bert_embeds() -> Network:
    network = _text("BertForSequenceClassification", "BertConfig", BERT, ENCODER)
    given = {"inputs_embeds": torch.randn(2, T, D), "attention_mask": torch.ones(2, T, dtype=torch.long)}
    given["attention_mask"][1, 6:] = 0
    return dataclasses.replace(network, inputs=given, at=None)


@model("transformers/t5")
def t5() -> Network:
    options = {
        "vocab_size": V,
        "d_model": D,
        "d_kv": 8,
        "d_ff": F,
        "num_layers": L,
        "num_heads": H,
        "pad_token_id": 0,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
    }
    made = _made("T5ForConditionalGeneration", "T5Config", options)
    inputs = {"inputs_embeds": torch.randn(1, T, D), "decoder_input_ids": tokens(5, V)}
    return Network(made, inputs, kind=TOKENS, fixed=_uncached(made))


@model("transformers/bart")
def bart() -> Network:
    options = {
        "vocab_size": V,
        "d_model": D,
        "encoder_layers": L,
        "decoder_layers": L,
        "encoder_attention_heads": H,
        "decoder_attention_heads": H,
        "encoder_ffn_dim": F,
        "decoder_ffn_dim": F,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    made = _made("BartForConditionalGeneration", "BartConfig", options)
    inputs = {"input_ids": tokens(T, V), "decoder_input_ids": tokens(5, V)}
    return Network(made, inputs, at="model.encoder.embed_tokens", kind=TOKENS, fixed=_uncached(made))


@model("transformers/whisper")
def whisper() -> Network:
    options = {
        "vocab_size": V,
        "d_model": D,
        "encoder_layers": L,
        "decoder_layers": L,
        "encoder_attention_heads": H,
        "decoder_attention_heads": H,
        "encoder_ffn_dim": F,
        "decoder_ffn_dim": F,
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "max_target_positions": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    made = _made("WhisperForConditionalGeneration", "WhisperConfig", options)
    inputs = {"input_features": torch.randn(1, 8, 24), "decoder_input_ids": tokens(5, V)}
    return Network(made, inputs, kind=TOKENS, fixed=_uncached(made))


@model("transformers/wav2vec2")
def wav2vec2() -> Network:
    options = {
        **ENCODER,
        "conv_dim": (16, 16),
        "conv_stride": (5, 2),
        "conv_kernel": (10, 3),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": V,
    }
    return Network(
        _made("Wav2Vec2ForCTC", "Wav2Vec2Config", options), {"input_values": torch.randn(1, 200)}, kind=TOKENS
    )


def _vision(
    cls: str, config: str, options: Mapping[str, Any], size: int = 32, kind: str = TOKENS, output: Any = None
) -> Network:
    return Network(_made(cls, config, options), {"pixel_values": image(size)}, kind=kind, output=output)


several(
    "transformers",
    {
        "vit": ("ViTForImageClassification", "ViTConfig", VISION),
        "deit": ("DeiTForImageClassification", "DeiTConfig", VISION),
        "beit": ("BeitForImageClassification", "BeitConfig", {**VISION, "use_relative_position_bias": True}),
        "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", VISION),
        "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", VISION, 32, TOKENS, "last_hidden_state"),
        "swin": (
            "SwinForImageClassification",
            "SwinConfig",
            {
                "image_size": 32,
                "patch_size": 4,
                "embed_dim": 16,
                "depths": [2, 2],
                "num_heads": [2, 4],
                "window_size": 4,
            },
        ),
        "convnext": (
            "ConvNextForImageClassification",
            "ConvNextConfig",
            {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32},
            32,
            IMAGE,
        ),
        "resnet": (
            "ResNetForImageClassification",
            "ResNetConfig",
            {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]},
            32,
            IMAGE,
        ),
        "segformer": (
            "SegformerForImageClassification",
            "SegformerConfig",
            {
                "hidden_sizes": [8, 16],
                "num_encoder_blocks": 2,
                "depths": [1, 1],
                "sr_ratios": [2, 1],
                "strides": [4, 2],
                "patch_sizes": [7, 3],
                "num_attention_heads": [1, 2],
                "mlp_ratios": [2, 2],
                "decoder_hidden_size": 16,
            },
        ),
        "clip-vision": (
            "CLIPVisionModelWithProjection",
            "CLIPVisionConfig",
            VISION,
            32,
            TOKENS,
            "image_embeds",
        ),
        "siglip-vision": ("SiglipVisionModel", "SiglipVisionConfig", VISION, 32, TOKENS, "pooler_output"),
    },
    _vision,
)


@model("transformers/clip")
def clip() -> Network:
    text = {**ENCODER, "eos_token_id": 2, "bos_token_id": 1}
    made = _made(
        "CLIPModel", "CLIPConfig", {"text_config": text, "vision_config": VISION, "projection_dim": 16}
    )
    ids = torch.cat([tokens(T, V), torch.tensor([[2]])], 1)
    return Network(
        made, {"pixel_values": image(32), "input_ids": ids}, kind=TOKENS, output="logits_per_image"
    )


@model("transformers/siglip")
def siglip() -> Network:
    made = _made("SiglipModel", "SiglipConfig", {"text_config": ENCODER, "vision_config": VISION})
    return Network(
        made, {"pixel_values": image(32), "input_ids": tokens(T, V)}, kind=TOKENS, output="logits_per_image"
    )


@model("transformers/sam")
def sam() -> Network:
    vision = {
        "hidden_size": D,
        "output_channels": 16,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "image_size": 32,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_dim": F,
        "num_pos_feats": 8,
    }
    prompt = {"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    mask = {
        "hidden_size": 16,
        "mlp_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    made = _made(
        "SamModel",
        "SamConfig",
        {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": mask},
    )
    points = torch.tensor([[[[9.0, 13.0]]]])
    return Network(
        made, {"pixel_values": image(32), "input_points": points}, kind=TOKENS, output="pred_masks"
    )


@model("transformers/llava")
def llava() -> Network:
    made = _made(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **DECODER},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_token_index": 39,
            "vision_feature_layer": -1,
        },
    )
    ids = torch.cat([tokens(3, 39), torch.full((1, 16), 39), tokens(4, 39)], 1)
    # The text is known: transformers looks at it to count the tokens that stand for the image.
    return Network(Asked(made, ids), {"pixel_values": image(32)}, kind=TOKENS)


class Asked(torch.nn.Module):
    """A vision-language model with a question that stays the same."""

    def __init__(self, model: torch.nn.Module, ids: torch.Tensor):
        super().__init__()
        self.model, self.ids = model, ids

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=self.ids, pixel_values=pixel_values, use_cache=False).logits


# ------------------------------------------------------------------------------------------------------ timm, torch


def _timm(
    name: str,
    size: int,
    kind: str = IMAGE,
    options: Mapping[str, Any] | None = None,
    expected: tuple[str, ...] = (),
) -> Network:
    import timm

    made = timm.create_model(name, pretrained=False, num_classes=10, **(options or {}))
    return Network(made, {"x": image(size)}, kind=kind, expected=expected)


MIXER = {"img_size": 32}
SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}

several(
    "timm",
    {
        "vit_tiny": ("vit_tiny_patch16_224", 32, TOKENS, SMALL_VIT),
        "deit3": ("deit3_small_patch16_224", 32, TOKENS, SMALL_VIT),
        "eva02": ("eva02_tiny_patch14_224", 32, TOKENS, SMALL_VIT),
        "beitv2": ("beitv2_base_patch16_224", 32, TOKENS, SMALL_VIT),
        "cait": ("cait_xxs24_224", 32, TOKENS, {**SMALL_VIT, "depth": 2}),
        "mixer": (
            "mixer_s16_224",
            32,
            TOKENS,
            MIXER,
        ),
        "resmlp": (
            "resmlp_12_224",
            32,
            TOKENS,
            MIXER,
        ),
        "gmlp": (
            "gmlp_s16_224",
            32,
            TOKENS,
            MIXER,
        ),
        "swin_tiny": (
            "swin_tiny_patch4_window7_224",
            32,
            TOKENS,
            {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
        ),
        "swinv2": (
            "swinv2_tiny_window8_256",
            32,
            TOKENS,
            {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
        ),
        "pvt_v2": ("pvt_v2_b0", 64, TOKENS),
        "xcit": (
            "xcit_nano_12_p16_224",
            32,
            TOKENS,
            {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4},
        ),
        "levit": ("levit_128s", 64, TOKENS, {"img_size": 64}),
        "poolformer": ("poolformer_s12", 64, IMAGE),
        "mobilevit": ("mobilevit_xxs", 64, TOKENS),
        "edgenext": ("edgenext_xx_small", 64, TOKENS),
        "fastvit": ("fastvit_t8", 64, IMAGE),
        "coatnet": ("coatnet_0_rw_224", 64, TOKENS, {"img_size": 64}),
        "resnet10t": ("resnet10t", 64),
        "resnetv2": ("resnetv2_18", 64),
        "seresnet18": ("legacy_seresnet18", 64),
        "skresnet18": ("skresnet18", 64),
        "res2net": ("res2net50_26w_4s", 32),
        "nfnet": ("nfnet_l0", 32),
        "regnetz": ("regnetz_005", 64),
        "convnextv2": ("convnextv2_atto", 64),
        "mobilenetv4": ("mobilenetv4_conv_small", 64),
        "efficientnet_lite0": ("efficientnet_lite0", 64),
        "tf_efficientnet_b0": ("tf_efficientnet_b0", 64),
        "ghostnet": ("ghostnetv2_100", 64),
        "hrnet": ("hrnet_w18_small", 64, IMAGE, None, ("native: sum",)),
        "dla34": ("dla34", 64),
        "vovnet": ("ese_vovnet19b_dw", 64),
        "repvgg": ("repvgg_a0", 64),
        "darknet": ("cs3darknet_s", 64),
        "inception_next": ("inception_next_atto", 64),
        "starnet": ("starnet_s1", 64),
    },
    _timm,
)


class Last(torch.nn.Module):
    """The last step of a recurrent layer, and a linear layer behind it."""

    def __init__(self, layer: torch.nn.Module, width: int):
        super().__init__()
        self.layer, self.head = layer, torch.nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


several(
    "torch.nn",
    {
        "LSTM": (torch.nn.LSTM, {"num_layers": 1}, 8),
        "LSTM-bidirectional": (torch.nn.LSTM, {"num_layers": 2, "bidirectional": True}, 16),
        "GRU": (torch.nn.GRU, {"num_layers": 2}, 8),
        "RNN": (torch.nn.RNN, {}, 8),
    },
    lambda cls, options, width: Network(
        Last(cls(6, 8, batch_first=True, **options), width), {"x": torch.randn(2, 7, 6)}, kind=GATED
    ),
)


@model("torch.nn/TransformerEncoder")
def transformer_encoder() -> Network:
    layer = torch.nn.TransformerEncoderLayer(D, H, F, batch_first=True)
    return Network(torch.nn.TransformerEncoder(layer, L), {"src": torch.randn(2, 7, D)}, kind=TOKENS)


@model("torch.nn/Transformer")
def transformer() -> Network:
    made = torch.nn.Transformer(D, H, L, L, F, batch_first=True, norm_first=True)
    return Network(made, {"src": torch.randn(2, 7, D), "tgt": torch.randn(2, 5, D)}, kind=TOKENS)
