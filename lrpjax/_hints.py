"""Answers to people who come from another library: what they write, and what it is called here.

`EpsilonPlus` of zennit, `n_steps=` of captum and "convolution" as the name of a kind are errors here, as any name that
does not exist. These tables give such an error its last sentence. They change nothing that works.
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Hint(NamedTuple):
    """Whose name it is, and what is written here in its place."""

    library: str
    here: str


ARGUMENTS: Mapping[str, tuple[Hint, ...]] = {
    "eps": (Hint("", "epsilon"),),
    "stabilizer": (Hint("zennit", "epsilon"),),
    "stabiliser": (Hint("", "epsilon"),),
    "zero_params": (Hint("zennit", "bias=False"),),
    "set_bias_to_zero": (Hint("captum", "bias=False"),),
    "bias_factor": (Hint("lrp_toolbox", "bias='share'"),),
    "hi": (Hint("", "high"),),
    "lo": (Hint("", "low"),),
    "n_steps": (Hint("captum", "steps"),),
    "n_iter": (Hint("zennit", "steps"), Hint("zennit", "samples")),
    "baselines": (Hint("captum", "baseline"), Hint("captum", "fill")),
    "nt_samples": (Hint("captum", "samples"),),
    "n_samples": (Hint("", "samples"),),
    "num_samples": (Hint("", "samples"),),
    "noise_level": (Hint("zennit", "noise"),),
    "stdevs": (Hint("captum", "noise"),),
    "sliding_window_shapes": (Hint("captum", "patch"),),
    "window": (Hint("zennit", "patch"),),
    "strides": (Hint("captum", "stride"),),
    "internal_batch_size": (Hint("captum", "batch"),),
    "perturbations_per_eval": (Hint("captum", "batch"),),
    "argnum": (Hint("", "argnums"),),
    "attr_output": (Hint("zennit", "target"),),
    "layer": (Hint("captum", "at"),),
    "record_layer": (Hint("zennit-crp", "at"),),
}
"""Arguments of other libraries, by name: what is given here, an argument or `argument=value`. Of several answers the
first is given whose argument the function has."""

COMPOSITES = {
    "EpsilonPlus": Hint("zennit", "composites.epsilon_plus()"),
    "EpsilonPlusFlat": Hint("zennit", "composites.epsilon_plus_flat()"),
    "EpsilonAlpha2Beta1": Hint("zennit", "composites.epsilon_alpha2_beta1()"),
    "EpsilonAlpha2Beta1Flat": Hint("zennit", "composites.epsilon_alpha2_beta1_flat()"),
    "EpsilonGammaBox": Hint("zennit", "composites.epsilon_gamma_box(low, high)"),
    "ExcitationBackprop": Hint("zennit", "composites.excitation_backprop()"),
    "DeconvNet": Hint("zennit", "composites.deconvnet()"),
    "Deconvolution": Hint("captum", "composites.deconvnet()"),
    "GuidedBackprop": Hint("zennit", "composites.guided_backprop()"),
    "BetaSmooth": Hint("zennit", "composites.beta_smooth()"),
    "LayerMapComposite": Hint("zennit", "Composite([(select.kind('conv'), rule), …])"),
    "SpecialFirstLayerMapComposite": Hint("zennit", "Composite([(select.first('conv'), rule), …])"),
    "NameMapComposite": Hint("zennit", "Composite([('path/*', rule), …])"),
    "MixedComposite": Hint("zennit", "Composite([*first.pairs, *second.pairs])"),
}
RULES = {
    "EpsilonRule": Hint("captum", "rules.Epsilon()"),
    "GammaRule": Hint("captum", "rules.Gamma(0.25)"),
    "Alpha1_Beta0_Rule": Hint("captum", "rules.ZPlus()"),
    "IdentityRule": Hint("captum", "rules.Pass()"),
    "ReLUDeconvNet": Hint("zennit", "rules.Deconvnet()"),
    "ReLUGuidedBackprop": Hint("zennit", "rules.GuidedBackprop()"),
    "ReLUBetaSmooth": Hint("zennit", "rules.BetaSmooth()"),
}
ATTRIBUTORS = {
    "IntegratedGradients": Hint("captum", "gradients.integrated_gradients(f)"),
    "SmoothGrad": Hint("zennit", "gradients.smoothgrad(f)"),
    "NoiseTunnel": Hint("captum", "gradients.smooth(explain)"),
    "Saliency": Hint("captum", "gradients.sensitivity(f)"),
    "InputXGradient": Hint("captum", "gradients.input_x_gradient(f)"),
    "Occlusion": Hint("captum", "gradients.occlusion(f, patch=8)"),
    "LayerGradCam": Hint("captum", "gradients.grad_cam(f, at='path')"),
}
NAMES: Mapping[str, Mapping[str, Hint]] = {
    "lrpjax": {
        "LRP": Hint("captum", "relevance(f, composite)"),
        "LayerLRP": Hint("captum", "relevance(f, composite, at='path')"),
        "Gradient": Hint("zennit", "relevance(f, composite)"),
        "attribute": Hint("captum", "relevance(f, composite)(x)"),
        **ATTRIBUTORS,
        **COMPOSITES,
        **RULES,
    },
    "lrpjax.composites": {**COMPOSITES, **RULES},
    "lrpjax.rules": {"EpsilonPlus": COMPOSITES["EpsilonPlus"], **RULES},
    "lrpjax.gradients": ATTRIBUTORS,
}
"""Names of other libraries, by the module of ours in which they are looked for."""

KINDS = {
    "convolution": "conv",
    "convolutional": "conv",
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "fc": "dense",
    "fully_connected": "dense",
    "gemm": "dense",
    "matmul": "dense",
    "nonlinearity": "activation",
    "residual": "sum",
    "add": "sum",
    "pooling": "pool",
    "maxpool": "max_pool",
    "avgpool": "avg_pool",
    "layernorm": "norm",
    "layer_norm": "norm",
    "rmsnorm": "norm",
    "rms_norm": "norm",
    "groupnorm": "norm",
    "mul": "product",
    "multiply": "product",
    "bilinear": "product",
    "batchnorm": "affine",
    "batch_norm": "affine",
}
"""What a kind of unit is called elsewhere, in small letters."""


def answer(hint: Hint | None) -> str:
    """What an error says at its end; nothing where there is no answer."""
    if hint is None:
        return ""
    return (
        f": {hint.library}'s name for what is here {hint.here}"
        if hint.library
        else f": here it is {hint.here}"
    )


def missing(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module: an AttributeError for a name that it lacks, with an answer where there is one."""

    def __getattr__(name: str) -> Any:
        hint = NAMES[module].get(name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}{answer(hint)}", name=name)

    return __getattr__


def hinted(function: F) -> F:
    """A function that answers to arguments which it does not have by the names that they may have here.

    It is otherwise the function itself, with its signature, docstring and module.
    """
    parameters, refuse = inspect.signature(function).parameters, _refuse

    def hinting(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in parameters:
                refuse(function, name, parameters)
        return function(*args, **kwargs)

    # With the globals of the function, though it reads none of them: doctest takes a function's module from there.
    code, closure = hinting.__code__, hinting.__closure__
    same = types.FunctionType(code, function.__globals__, function.__name__, None, closure)
    return functools.wraps(function)(same)  # type: ignore[return-value]


def _refuse(function: Callable[..., Any], name: str, parameters: Mapping[str, Any]) -> None:
    """
    Raises:
        TypeError: the function does not have an argument of this name, and there is an answer for it.
    """
    for hint in ARGUMENTS.get(name, ()):
        if hint.here.partition("=")[0] in parameters:
            owner = function.__qualname__.removesuffix(".__init__")
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}{answer(hint)}")
