"""All recognisers, and running them over a network."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from tactician.network import make_names_unique
from tactician.recognition import Missed, Recognised, Recogniser
from tactician.recognition.attention import AttentionRecogniser
from tactician.recognition.normalization import NormalizationRecogniser

RECOGNISERS: tuple[Recogniser, ...] = (AttentionRecogniser(), NormalizationRecogniser())


def recognise(network: ir.Model, recognisers: Sequence[Recogniser]) -> tuple[list[Recognised], list[Missed]]:
    """Return what ``recognisers`` find in ``network`` and what they just miss; it is brought into their forms first."""
    found: list[Recognised] = []
    missed: list[Missed] = []
    for recogniser in recognisers:
        recogniser.prepare(network)
        make_names_unique(network)
        for item in recogniser.find(network):
            if isinstance(item, Recognised):
                found.append(item)
            else:
                missed.append(item)
    return found, missed
