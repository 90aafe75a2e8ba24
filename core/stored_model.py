"""A model as an engine file keeps it: the graph as ONNX bytes, and its weights as raw bytes beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from tactician.model_file import ModelFile


class WeightType(msgspec.Struct, frozen=True):
    """ONNX's name of the element type, and the dimensions, of a weight."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredModel:
    """A model that needs no file of its own.

    Parameters
    ----------
    graph
        The model as ONNX bytes, its weights being inputs of the graph.
    types
        Of the weights, by name.
    weights
        Their raw bytes, by name.
    """

    graph: bytes
    types: Mapping[str, WeightType]
    weights: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any) -> StoredModel:
        """Return ``model``, given as ``build`` takes it, to be kept.

        Raises
        ------
        InvalidModelError, ExternalDataError
            If it can't be read.
        """
        from tactician.engine import weight_bytes
        from tactician.model_file import read_model

        file = read_model(model)
        types = {name: WeightType(t.dtype.name, tuple(t.shape.numpy())) for name, t in file.weights.items()}
        weights = {name: weight_bytes(t.numpy()) for name, t in file.weights.items()}
        return cls(file.proto.SerializeToString(deterministic=True), types, weights)

    def open(self) -> ModelFile:
        """Return the model to be imported. Needs ``onnx``."""
        import onnx_ir as ir
        from onnx import ModelProto
        from tactician.model_file import ModelFile

        weights: dict[str, ir.TensorProtocol] = {}
        for name, type in self.types.items():
            dtype = ir.DataType[type.dtype]
            if dtype == ir.DataType.STRING:
                texts = [text.encode() for text in json.loads(bytes(self.weights[name]))]
                weights[name] = ir.StringTensor(texts, shape=ir.Shape(type.shape), name=name)
            else:
                array = np.frombuffer(self.weights[name], dtype.numpy()).reshape(type.shape)
                weights[name] = ir.Tensor(array, dtype=dtype, name=name)
        return ModelFile(ModelProto.FromString(self.graph), weights)
