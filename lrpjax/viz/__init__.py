"""Pictures of relevance: heatmaps, overlays, contact sheets, curves, tokens, tokens by layers, texts, circuits, trees.

Everything here works on plain arrays (NumPy or JAX, of any real dtype) and returns plain arrays, strings or
`matplotlib.figure.Figure` objects; no pyplot, so no global state and no display is needed. matplotlib is optional:
``pip install "lrpjax[viz]"``. Strings of HTML are `str`, and a
notebook displays them.

Colour maps go by their names. ``"relevance"``, the default, is white at zero and runs to a blue (against) and a red
(for) of the same lightness and chroma, so that equal magnitudes look equally strong and the largest look strongest.
``"blue-orange"`` does the same for readers who cannot tell red from green: simulated for each kind of colour
blindness, its two ends stay far apart. Zennit's ``"coldnhot"`` and all names of matplotlib's are there as well.

Four conventions hold throughout. *Symmetric* ranges [−limit, limit] are for signed relevance: zero has the
colour at the middle of the map (exactly white in the default map, with red for and blue against).
*One-sided* ranges [0, limit] are for quantities without a sign, such as sensitivity. And a value that is NaN
or infinite is painted in `BAD`, a green that no diverging map contains, so that it is seen where it is and
never taken for a small relevance. Lastly, whatever is drawn can be described to who does not see it: figures have an
*alternative text* as their label (`figure.get_label()`), which `save` writes into PNG, SVG and PDF files and
notebooks keep with the picture, and HTML has it as its ``aria-label``.
"""

from lrpjax.viz.charts import curves, kept
from lrpjax.viz.circuits import circuit
from lrpjax.viz.colours import BAD, colormap
from lrpjax.viz.language import generated, token_layers
from lrpjax.viz.maps import heatmap, overlay, shared_limit
from lrpjax.viz.saving import check_path, save
from lrpjax.viz.sheets import sheet
from lrpjax.viz.text import tokens
from lrpjax.viz.trees import tree

__all__ = [
    "BAD",
    "check_path",
    "circuit",
    "colormap",
    "curves",
    "generated",
    "heatmap",
    "kept",
    "overlay",
    "save",
    "shared_limit",
    "sheet",
    "token_layers",
    "tokens",
    "tree",
]
