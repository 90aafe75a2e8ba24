"""Old models are brought to a recent opset, by the onnx project's own converter."""

from __future__ import annotations

import math

from onnx import ModelProto, version_converter
from tactician.errors import InvalidModelError
from tactician.model_checks import all_nodes, check_structure, one_line, opset_versions, run_checker

BASELINE = 18
"""Models of an older opset of the standard domain are converted to this one."""

NOTE = "tactician.opset"
"""Key of the model's metadata under which a model that stays as it is says why."""

OLDEST_KEPT = 7
"""Models of older opsets must be convertible: nothing has kernels for these."""

MISCONVERTED = {"PRelu": 7, "Scan": 9}
"""Operators that the converter leaves as they are, with the opset in which their meaning changed.

PRelu's slope was one per channel and is broadcast from the right, which is the same for a single one; Scan had a
batch dimension.
"""


def modernize(proto: ModelProto) -> ModelProto:
    """Return ``proto`` at the baseline opset or, where the converter can't do it right, as it is.

    Then a note in its metadata says why.

    Raises
    ------
    InvalidModelError
        If it can't be converted and is older than ``OLDEST_KEPT``.
    """
    version = opset_versions(proto).get("")
    if version is None or version >= BASELINE:
        return proto
    try:
        converted = _convert(proto, version)
    except Exception as error:  # the converter names its own gaps by all kinds of exceptions
        if version < OLDEST_KEPT:
            raise InvalidModelError(
                f"the model is of opset {version} and can't be converted to a newer one: {one_line(error)}; "
                "export it again"
            ) from error
        entry = proto.metadata_props.add()
        entry.key, entry.value = NOTE, f"kept at opset {version}: {one_line(error, 200)}"
        return proto
    return converted


def _convert(proto: ModelProto, version: int) -> ModelProto:
    single = {t.name for t in proto.graph.initializer if math.prod(t.dims) == 1}
    for node in all_nodes(proto.graph.node):
        same = node.op_type == "PRelu" and node.input[1:] and node.input[1] in single
        if not node.domain and not same and version < MISCONVERTED.get(node.op_type, 0):
            raise InvalidModelError(f"the converter does not know that {node.op_type} has changed")
    converted = version_converter.convert_version(proto, BASELINE)
    for kind in ("input", "output"):
        if [v.name for v in getattr(proto.graph, kind)] != [v.name for v in getattr(converted.graph, kind)]:
            raise InvalidModelError(f"the converter changed the model's {kind}s")
    check_structure(converted)
    run_checker(converted)
    return converted
