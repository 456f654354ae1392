"""Hugging Face's Flax classes (transformers < 5), built from tiny configurations."""

import jax
import transformers as hf
from check import TOKENS, Case, image, model, shake, tokens
from flax.traverse_util import flatten_dict, unflatten_dict


def _weights(net):
    """Random weights of the size that training leaves: initialisers with σ = 0.02 make every attention uniform in networks this small."""

    def resize(path, a):
        if a.ndim < 2 or not a.std() > 0:
            return a
        fan_in = 1 if path[-1] == "embedding" else a.size / a.shape[-1]
        return a / (a.std() * fan_in**0.5)

    flat = flatten_dict(shake(net.params))
    return unflatten_dict({path: resize(path, a) for path, a in flat.items()})


def _case(net, params, embedding, apply, ids, scope=None):
    """A Case for token numbers, explained at their embedding (in `scope`), whose table the gradient is taken of for comparison."""
    path = (*embedding.split("/"), "embedding")
    flat = flatten_dict(params)
    weights = lambda table: apply(unflatten_dict({**flat, path: table}), ids)
    at = f"{net.module_class.__name__}/{scope or embedding}"
    return Case(lambda ids: apply(params, ids), ids, at=at, kind=TOKENS, weights=(weights, flat[path]))


V, D, H, L, F, T = 40, 32, 4, 2, 64, 9  # vocabulary, width, heads, layers, inner width, length


def _text(cls, config, embedding, output="logits", **inputs):
    net = cls(config, seed=0, input_shape=(1, T))
    params = _weights(net)
    apply = lambda params, ids: getattr(net(ids, params=params, **inputs), output)
    return _case(net, params, embedding, apply, tokens(1, T, V))


def _image(cls, config, size=32, output="logits", **inputs):
    net = cls(config, seed=0, input_shape=(1, size, size, 3))
    params = _weights(net)
    return lambda x: getattr(net(x, params=params, **inputs), output), image(1, 3, size, size)


BERT = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "intermediate_size": F,
    "max_position_embeddings": 32,
}


@model("hf/bert")
def bert():
    return _text(
        hf.FlaxBertForSequenceClassification, hf.BertConfig(**BERT), "bert/embeddings/word_embeddings"
    )


@model("hf/bert-mlm")
def bert_mlm():
    return _text(hf.FlaxBertForMaskedLM, hf.BertConfig(**BERT), "bert/embeddings/word_embeddings")


@model("hf/roberta")
def roberta():
    return _text(
        hf.FlaxRobertaForSequenceClassification,
        hf.RobertaConfig(**BERT),
        "roberta/embeddings/word_embeddings",
    )


@model("hf/roberta-prelayernorm")
def roberta_prelayernorm():
    config = hf.RobertaPreLayerNormConfig(**BERT)
    return _text(
        hf.FlaxRobertaPreLayerNormForSequenceClassification,
        config,
        "roberta_prelayernorm/embeddings/word_embeddings",
    )


@model("hf/xlm-roberta")
def xlm_roberta():
    return _text(
        hf.FlaxXLMRobertaForSequenceClassification,
        hf.XLMRobertaConfig(**BERT),
        "roberta/embeddings/word_embeddings",
    )


@model("hf/electra")
def electra():
    return _text(
        hf.FlaxElectraForSequenceClassification,
        hf.ElectraConfig(embedding_size=D, **BERT),
        "electra/embeddings/word_embeddings",
    )


@model("hf/distilbert")
def distilbert():
    config = hf.DistilBertConfig(
        vocab_size=V, dim=D, n_layers=L, n_heads=H, hidden_dim=F, max_position_embeddings=32
    )
    return _text(hf.FlaxDistilBertForSequenceClassification, config, "distilbert/embeddings/word_embeddings")


@model("hf/albert")
def albert():
    return _text(
        hf.FlaxAlbertForSequenceClassification,
        hf.AlbertConfig(embedding_size=D, **BERT),
        "albert/embeddings/word_embeddings",
    )


@model("hf/roformer")
def roformer():
    return _text(
        hf.FlaxRoFormerForSequenceClassification,
        hf.RoFormerConfig(embedding_size=D, **BERT),
        "roformer/embeddings/word_embeddings",
    )


@model("hf/big-bird")
def big_bird():
    config = hf.BigBirdConfig(**BERT, attention_type="original_full")
    return _text(hf.FlaxBigBirdForSequenceClassification, config, "bert/embeddings/word_embeddings")


@model("hf/big-bird-sparse")
def big_bird_sparse():
    long = 32
    config = hf.BigBirdConfig(
        **{**BERT, "max_position_embeddings": 64},
        attention_type="block_sparse",
        block_size=4,
        num_random_blocks=1,
    )
    net = hf.FlaxBigBirdForSequenceClassification(config, seed=0, input_shape=(1, long))
    params = _weights(net)
    apply = lambda params, ids: net(ids, params=params, indices_rng=jax.random.key(0)).logits
    return _case(net, params, "bert/embeddings/word_embeddings", apply, tokens(1, long, V))


@model("hf/gpt2")
def gpt2():
    config = hf.GPT2Config(vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=32)
    return _text(hf.FlaxGPT2LMHeadModel, config, "transformer/wte")


@model("hf/gpt-neo")
def gpt_neo():
    types = [[["global", "local"], 1]]
    config = hf.GPTNeoConfig(
        vocab_size=V,
        hidden_size=D,
        num_layers=L,
        num_heads=H,
        attention_types=types,
        max_position_embeddings=32,
        window_size=4,
    )
    return _text(hf.FlaxGPTNeoForCausalLM, config, "transformer/wte")


@model("hf/gpt-j")
def gpt_j():
    config = hf.GPTJConfig(vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=32, rotary_dim=4)
    return _text(hf.FlaxGPTJForCausalLM, config, "transformer/wte")


@model("hf/llama")
def llama():
    config = hf.LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        num_key_value_heads=2,
        intermediate_size=F,
        max_position_embeddings=32,
    )
    return _text(hf.FlaxLlamaForCausalLM, config, "model/embed_tokens")


@model("hf/mistral")
def mistral():
    config = hf.MistralConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        num_key_value_heads=2,
        intermediate_size=F,
        sliding_window=4,
        max_position_embeddings=32,
    )
    return _text(hf.FlaxMistralForCausalLM, config, "model/embed_tokens")


@model("hf/gemma")
def gemma():
    config = hf.GemmaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        num_key_value_heads=1,
        intermediate_size=F,
        head_dim=8,
        max_position_embeddings=32,
    )
    return _text(hf.FlaxGemmaForCausalLM, config, "model/embed_tokens")


@model("hf/bloom")
def bloom():
    return _text(
        hf.FlaxBloomForCausalLM,
        hf.BloomConfig(vocab_size=V, hidden_size=D, n_layer=L, n_head=H),
        "transformer/word_embeddings",
    )


@model("hf/opt")
def opt():
    config = hf.OPTConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        ffn_dim=F,
        max_position_embeddings=32,
        word_embed_proj_dim=D,
    )
    return _text(hf.FlaxOPTForCausalLM, config, "model/decoder/embed_tokens")


@model("hf/xglm")
def xglm():
    config = hf.XGLMConfig(
        vocab_size=V, d_model=D, num_layers=L, attention_heads=H, ffn_dim=F, max_position_embeddings=32
    )
    return _text(hf.FlaxXGLMForCausalLM, config, "model/embed_tokens")


T5 = {
    "vocab_size": V,
    "d_model": D,
    "d_kv": 8,
    "d_ff": F,
    "num_layers": L,
    "num_heads": H,
    "decoder_start_token_id": 0,
}


def _seq2seq(cls, config, embedding, scope):
    net = cls(config, seed=0, input_shape=(1, T))
    params = _weights(net)
    decoder = tokens(1, 5, V, seed=1)
    apply = lambda params, ids: net(ids, decoder_input_ids=decoder, params=params).logits
    return _case(net, params, embedding, apply, tokens(1, T, V), scope)


@model("hf/t5")
def t5():
    return _seq2seq(hf.FlaxT5ForConditionalGeneration, hf.T5Config(**T5), "shared", "encoder/shared")


@model("hf/t5-gated-gelu")
def t5_gated():
    return _seq2seq(
        hf.FlaxT5ForConditionalGeneration,
        hf.T5Config(**T5, feed_forward_proj="gated-gelu"),
        "shared",
        "encoder/shared",
    )


@model("hf/mt5")
def mt5():
    return _seq2seq(hf.FlaxMT5ForConditionalGeneration, hf.MT5Config(**T5), "shared", "encoder/shared")


@model("hf/longt5-local")
def longt5():
    config = hf.LongT5Config(**T5, local_radius=3, global_block_size=4, encoder_attention_type="local")
    return _seq2seq(hf.FlaxLongT5ForConditionalGeneration, config, "shared", "encoder/shared")


@model("hf/longt5-global")
def longt5_global():
    config = hf.LongT5Config(
        **T5, local_radius=3, global_block_size=4, encoder_attention_type="transient-global"
    )
    return _seq2seq(hf.FlaxLongT5ForConditionalGeneration, config, "shared", "encoder/shared")


BART = {
    "vocab_size": V, "d_model": D, "encoder_layers": L, "decoder_layers": L, "encoder_attention_heads": H, "decoder_attention_heads": H,
    "encoder_ffn_dim": F, "decoder_ffn_dim": F, "max_position_embeddings": 32, "pad_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip


@model("hf/bart")
def bart():
    return _seq2seq(
        hf.FlaxBartForConditionalGeneration,
        hf.BartConfig(**BART, eos_token_id=2),
        "model/shared",
        "model/encoder/shared",
    )


@model("hf/mbart")
def mbart():
    return _seq2seq(
        hf.FlaxMBartForConditionalGeneration, hf.MBartConfig(**BART), "model/shared", "model/encoder/shared"
    )


@model("hf/marian")
def marian():
    return _seq2seq(hf.FlaxMarianMTModel, hf.MarianConfig(**BART), "model/shared", "model/encoder/shared")


@model("hf/pegasus")
def pegasus():
    return _seq2seq(
        hf.FlaxPegasusForConditionalGeneration,
        hf.PegasusConfig(**BART),
        "model/shared",
        "model/encoder/shared",
    )


@model("hf/blenderbot")
def blenderbot():
    return _seq2seq(
        hf.FlaxBlenderbotForConditionalGeneration,
        hf.BlenderbotConfig(**BART),
        "model/shared",
        "model/encoder/shared",
    )


VIT = {
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "intermediate_size": F,
    "image_size": 32,
    "patch_size": 8,
}


@model("hf/vit")
def vit():
    f, x = _image(hf.FlaxViTForImageClassification, hf.ViTConfig(**VIT))
    return Case(f, x, kind=TOKENS)


@model("hf/beit")
def beit():
    config = hf.BeitConfig(**VIT, use_relative_position_bias=True, layer_scale_init_value=0.1)
    f, x = _image(hf.FlaxBeitForImageClassification, config)
    return Case(f, x, kind=TOKENS)


@model("hf/dinov2")
def dinov2():
    f, x = _image(
        hf.FlaxDinov2ForImageClassification,
        hf.Dinov2Config(**{k: v for k, v in VIT.items() if k != "intermediate_size"}),
    )
    return Case(f, x, kind=TOKENS)


@model("hf/resnet")
def resnet():
    config = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=5
    )
    f, x = _image(hf.FlaxResNetForImageClassification, config)
    return Case(f, x)


@model("hf/resnet-bottleneck")
def resnet_bottleneck():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], num_labels=5)
    f, x = _image(hf.FlaxResNetForImageClassification, config)
    return Case(f, x)


@model("hf/regnet")
def regnet():
    config = hf.RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, layer_type="y", num_labels=5
    )
    f, x = _image(hf.FlaxRegNetForImageClassification, config)
    return Case(f, x)


def _clip():
    text = {
        "vocab_size": V,
        "hidden_size": D,
        "num_hidden_layers": L,
        "num_attention_heads": H,
        "intermediate_size": F,
        "max_position_embeddings": 32,
        "eos_token_id": 2,
    }
    return hf.CLIPConfig(text_config=text, vision_config=VIT, projection_dim=16)


@model("hf/clip-image")
def clip_image():
    net = hf.FlaxCLIPModel(_clip(), seed=0, input_shape=((1, T), (1, 32, 32, 3)))
    params = _weights(net)
    ids = tokens(3, T, V)
    f = lambda x: net(input_ids=ids, pixel_values=x, params=params).logits_per_image
    return Case(f, image(1, 3, 32, 32), kind=TOKENS)


@model("hf/clip-text")
def clip_text():
    net = hf.FlaxCLIPModel(_clip(), seed=0, input_shape=((1, T), (1, 32, 32, 3)))
    params = _weights(net)
    x = image(2, 3, 32, 32)
    apply = lambda params, ids: net(input_ids=ids, pixel_values=x, params=params).logits_per_text
    return _case(net, params, "text_model/embeddings/token_embedding", apply, tokens(1, T, V))


@model("hf/wav2vec2-ctc")
def wav2vec2():
    config = hf.Wav2Vec2Config(
        vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=H, intermediate_size=F, conv_dim=(8, 8), conv_stride=(5, 2),
        conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, do_stable_layer_norm=True,
        feat_extract_norm="layer",
    )  # fmt: skip
    net = hf.FlaxWav2Vec2ForCTC(config, seed=0, input_shape=(1, 400))
    params = _weights(net)
    return Case(lambda x: net(x, params=params).logits, image(1, 400), kind=TOKENS)


@model("hf/whisper")
def whisper():
    config = hf.WhisperConfig(
        vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L, encoder_attention_heads=H, decoder_attention_heads=H, encoder_ffn_dim=F,
        decoder_ffn_dim=F, num_mel_bins=8, max_source_positions=16, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    net = hf.FlaxWhisperForConditionalGeneration(config, seed=0, input_shape=(1, 8, 32))
    params = _weights(net)
    decoder = tokens(1, 5, V)
    return Case(
        lambda x: net(x, decoder_input_ids=decoder, params=params).logits, image(1, 8, 32), kind=TOKENS
    )


@model("hf/vit-gpt2")
def vision_encoder_decoder():
    decoder = hf.GPT2Config(
        vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=32, add_cross_attention=True, is_decoder=True
    )
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(**VIT), decoder)
    net = hf.FlaxVisionEncoderDecoderModel(config, seed=0, input_shape=((1, 32, 32, 3), (1, 5)))
    params = _weights(net)
    ids = tokens(1, 5, V)
    return Case(
        lambda x: net(x, decoder_input_ids=ids, params=params).logits, image(1, 3, 32, 32), kind=TOKENS
    )
