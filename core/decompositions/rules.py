"""Which operators this package can write with others."""

from __future__ import annotations

from collections.abc import Mapping

from tactician.decompositions.call import Rule
from tactician.decompositions.convolution import conv_transpose
from tactician.decompositions.einsum import einsum
from tactician.decompositions.from_shapes import affine_grid, center_crop_pad, reduction
from tactician.decompositions.gathers import pad_by_gathers, slice_by_gathers
from tactician.decompositions.masks import hardmax, one_hot, trilu
from tactician.decompositions.recurrent import recurrent
from tactician.decompositions.resize import resize
from tactician.decompositions.sampling import grid_sample
from tactician.decompositions.scans import scan
from tactician.decompositions.statistics import batch_normalization, lp_normalization
from tactician.decompositions.windows import local_response_normalization, lp_pool

OLDEST_OPSET = 18
"""Rules write nodes of this opset or newer ones, which mean the same; older networks can't be read in another way."""

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

RULES: Mapping[str, Rule] = {
    "AffineGrid": affine_grid,
    "BatchNormalization": batch_normalization,
    "CenterCropPad": center_crop_pad,
    "ConvTranspose": conv_transpose,
    "CumProd": scan,
    "CumSum": scan,
    "Einsum": einsum,
    "GRU": recurrent,
    "GridSample": grid_sample,
    "Hardmax": hardmax,
    "LRN": local_response_normalization,
    "LSTM": recurrent,
    "LpNormalization": lp_normalization,
    "LpPool": lp_pool,
    "OneHot": one_hot,
    "Pad": pad_by_gathers,
    "RNN": recurrent,
    "Resize": resize,
    "Slice": slice_by_gathers,
    "Trilu": trilu,
    **{f"Reduce{name}": reduction for name in _REDUCTIONS},
}
"""By name of the operator of the standard domain. ONNX's own function bodies are there for others."""
