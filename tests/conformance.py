"""The ONNX project's conformance suite as plain cases: a model, and inputs with the outputs that it must give.

    python tests/conformance.py --target cpu [--json FILE] [--match TEXT]

runs the whole suite on a target and writes name to ``"ok"`` or the reason why not; on a GPU ``"ok; on the CPU: Det"`` where
operators had no kernel there.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests


@dataclass(frozen=True)
class Case:
    """One test of the suite: a model, and sets of inputs with the outputs that they must give.

    Node tests come as objects, whole-model tests as folders; ``source`` is the one or the other.
    """

    name: str
    source: Any
    rtol: float
    atol: float

    def model(self) -> onnx.ModelProto:
        return onnx.load(self.source / "model.onnx") if isinstance(self.source, Path) else self.source.model

    def data(self, model: onnx.ModelProto) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """Yield inputs by name and expected outputs, set by set."""
        names = [v.name for v in model.graph.input]
        if not isinstance(self.source, Path):
            for inputs, outputs in self.source.data_sets:
                yield dict(zip(names, map(_value, inputs), strict=False)), [_value(o) for o in outputs]
            return
        for folder in sorted(self.source.glob("test_data_set_*")):
            inputs = [
                _read(p, v.type) for p, v in zip(_files(folder, "input"), model.graph.input, strict=False)
            ]
            outputs = [
                _read(p, v.type) for p, v in zip(_files(folder, "output"), model.graph.output, strict=False)
            ]
            yield dict(zip(names, inputs, strict=False)), outputs


@cache
def cases() -> dict[str, Case]:
    """Return, by name, the node tests and the whole-model tests that the installed onnx carries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite computes infinities on purpose
        kinds = ("node", "simple", "pytorch-operator", "pytorch-converted")
        found = [case for kind in kinds for case in load_model_tests(kind=kind)]
    every = [Case(c.name, Path(c.model_dir) if c.model_dir else c, c.rtol, c.atol) for c in found]
    return {c.name: c for c in sorted(every, key=lambda c: c.name)}


def node_cases() -> list[str]:
    """Return the names of the node tests."""
    return [name for name, case in cases().items() if not isinstance(case.source, Path)]


def run_case(name: str, target: str) -> str:
    """Return ``"ok"``, or in a line why the case does not pass on ``target`` (``"reference"``: onnx's own evaluator).

    On other targets than the CPU what fell back to the CPU follows: ``"ok; on the CPU: Det"``.
    """
    case = cases()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = case.model()
            run, fallen_back = _runner(model, target)
            for feeds, wanted in case.data(model):
                got = run(feeds)
                for g, w in zip(got, wanted, strict=True):
                    compare(g, w, case)
            return f"ok; on the CPU: {', '.join(fallen_back)}" if fallen_back else "ok"
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def compare(got: Any, wanted: Any, case: Case) -> None:
    """Raise AssertionError where ``got`` differs from ``wanted`` by more than the case allows."""
    if isinstance(wanted, list):
        assert isinstance(got, list) and len(got) == len(wanted), (
            f"a sequence of {len(wanted)} was wanted, got {got!r:.100}"
        )
        for g, w in zip(got, wanted, strict=True):
            compare(g, w, case)
        return
    if wanted is None:
        assert got is None
        return
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, f"shape {got.shape}, wanted {wanted.shape}"
    if wanted.dtype == object or wanted.dtype.kind in "SU":
        assert [str(x) for x in got.ravel()] == [str(x) for x in wanted.ravel()]
        return
    assert got.dtype == wanted.dtype, f"type {got.dtype}, wanted {wanted.dtype}"
    wide = np.complex128 if wanted.dtype.kind == "c" else np.float64
    np.testing.assert_allclose(got.astype(wide), wanted.astype(wide), rtol=case.rtol, atol=case.atol)


def _runner(model: onnx.ModelProto, target: str) -> tuple[Any, list[str]]:
    """Return what runs the model, and the operators that it runs on the CPU though ``target`` is another."""
    if target == "reference":
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda feeds: evaluator.run(None, feeds), []
    from tactician.onnx_backend import TacticianBackend

    prepared = TacticianBackend.prepare(model, target.upper())
    steps = prepared.session.plan.steps
    elsewhere = {s.op.rpartition("::")[2] for s in steps if not s.is_copy and s.target != target}
    return lambda feeds: prepared.run(dict(feeds.items())), sorted(elsewhere)


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))


def _value(value: Any) -> Any:
    """Return what the suite gives as a TensorProto (types that NumPy lacks) as an array."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    match kind.WhichOneof("value"):
        case "sequence_type":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        case "optional_type":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="cpu", choices=["cpu", "cuda", "reference"])
    parser.add_argument("--match", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    chosen = [name for name in cases() if options.match in name]
    with ProcessPoolExecutor(options.processes) as pool:
        verdicts = list(pool.map(partial(run_case, target=options.target), chosen, chunksize=16))
    results = dict(zip(chosen, verdicts, strict=True))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    passed = [v for v in results.values() if v.startswith("ok")]
    for name, verdict in results.items():
        if verdict not in passed:
            print(f"{name}: {verdict}")
    print(f"{options.target}: {len(passed)} of {len(results)} pass, {passed.count('ok')} all on the target")
    return 0


if __name__ == "__main__":
    sys.exit(main())
