"""Does the main job on a real model: build, check, time and choose, run, and say why.

    python examples/digits/quickstart.py

Builds an engine of digits.onnx (a residual CNN, see train.py) for this machine's NVIDIA GPU or, without one,
for its CPU; runs it on 448 digits that training never saw, side by side with ONNX Runtime; saves the engine,
loads it again and compares.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import tactician
from data import split
from tactician import BuilderConfig, Engine, Session, build, load
from tactician.tactics.record import CandidateRecord, Decision, Outcome

MODEL = Path(__file__).with_name("digits.onnx")
BATCH = 32
BLOCKS, BLOCK, WARM_UP = 6, 50, 20


def main() -> None:
    arguments = parse_arguments()
    start = time.perf_counter()
    engine = build(MODEL, BuilderConfig(shapes={"input": (BATCH, 1, 8, 8)}, target=arguments.target))
    print_build(engine, time.perf_counter() - start)
    print_choices(engine)

    session = Session(engine)
    peer = onnxruntime_session()
    _, (images, labels) = split()
    ours = in_batches(lambda x: session.run({"input": x})["logits"], images)
    theirs = in_batches(lambda x: peer.run(None, {"input": x})[0], images)
    print_accuracy(ours, theirs, labels)
    print_latency(session, peer, images[:BATCH])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.save or Path(folder, "digits.tactician"))
        engine.save(path)
        loaded = load(path)
        again = in_batches(lambda x: loaded.run({"input": x})["logits"], images)
        print(
            f"\nengine     {path.name}, {path.stat().st_size / 1e6:.2f} MB; saved, loaded and run again: ",
            end="",
        )
        print(
            "outputs equal"
            if np.array_equal(again, ours)
            else f"outputs differ by {relative(again, ours):.1e}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", help="cpu or cuda (default: cuda where there is an NVIDIA GPU)")
    parser.add_argument("--save", help="keep the engine under this name")
    return parser.parse_args()


def print_build(engine: Engine, seconds: float) -> None:
    report = engine.report
    outcomes = Counter(c.outcome for d in report.decisions for c in d.candidates)
    timed = [c for d in report.decisions for c in d.candidates if c.timing]
    device = report.device.get("device", "unknown device")
    print(f"tactician {tactician.__version__} on {engine.plan.target}: {device}")
    calls = sum(not step.is_copy for step in engine.plan.steps)
    print(
        f"built      {MODEL.name} in {seconds:.1f} s: {engine.plan.model.nodes} nodes became {calls}, ",
        end="",
    )
    print(f"of which {len(report.decisions)} are different calls")
    print(
        f"candidates {len(timed)} timed ({sum(c.cached for c in timed)} of them in an earlier build), ",
        end="",
    )
    print(
        f"{outcomes[Outcome.DECLINED]} declined, {outcomes[Outcome.WRONG] + outcomes[Outcome.FAILED]} refused"
    )
    for warning in report.warnings:
        print(f"note       {warning}")


def print_choices(engine: Engine) -> None:
    """Print one line for each different call: what runs it, for how long, how exactly, and why that."""
    rows = [("call", "nodes", "tactic", "time", "error", "why")]
    for decision in engine.report.decisions:
        winner = decision.winner
        seconds = f"{winner.timing.median * 1e6:.1f} us" if winner.timing else "-"
        error = "-" if winner.error is None else f"{winner.error:.0e}"
        call = decision.signature.partition(" -> ")[0].partition("(")[0]
        output = decision.signature.partition(" -> ")[2]
        rows.append(
            (
                f"{call} {output}",
                str(len(decision.nodes)),
                decision.chosen,
                seconds,
                error,
                why(decision, winner),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    print()
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
    print()


def why(decision: Decision, winner: CandidateRecord) -> str:
    if decision.chosen_by not in ("default", "incumbent"):
        return f"asked for by {decision.chosen_by}"
    others = [c for c in decision.candidates if c.timing and c.tactic != winner.tactic]
    if winner.timing is None or not others:
        return "no other was fit to run it"
    next_best = min(others, key=lambda c: c.timing.median if c.timing else np.inf)
    ratio = next_best.timing.median / winner.timing.median if next_best.timing else np.nan
    if next_best.outcome is Outcome.TIE:
        return f"tie with {next_best.tactic}, kept by the stable rule"
    return f"{ratio:.2f} x as fast as {next_best.tactic}, the next of {len(others)}"


def onnxruntime_session() -> onnxruntime.InferenceSession:
    """Return ONNX Runtime's CPU session of the model, with as many threads as tactician takes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def in_batches(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    return np.concatenate([run(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def relative(values: np.ndarray, reference: np.ndarray) -> float:
    """Return ‖values − reference‖ / ‖reference‖."""
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


def print_accuracy(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> None:
    right, right_peer = (int((logits.argmax(1) == labels).sum()) for logits in (ours, theirs))
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    print(f"accuracy   {right} of {len(labels)} held-out digits right ({right / len(labels):.2%}), ", end="")
    print(f"onnxruntime {right_peer} ({right_peer / len(labels):.2%}); same answer to {same}")
    print(f"logits     relative difference from onnxruntime {relative(ours, theirs):.1e}")


def print_latency(session: Session, peer: onnxruntime.InferenceSession, batch: np.ndarray) -> None:
    """Time both in turns, in blocks: waiting threads of the one spin on cores that the other wants."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(BLOCKS):
        seconds[0].extend(time_block(lambda: session.run({"input": batch})))
        seconds[1].extend(time_block(lambda: peer.run(None, {"input": batch})))
    for label, who, times in (
        ("latency", session.plan.target, seconds[0]),
        ("", "onnxruntime, cpu", seconds[1]),
    ):
        low, median, high = np.percentile(np.array(times) * 1e3, (10, 50, 90))
        print(f"{label:10} {median:.3f} ms for {BATCH} images from host to host ", end="")
        print(f"(10th to 90th percentile {low:.3f} to {high:.3f}), {who}")


def time_block(run: Callable[[], object]) -> list[float]:
    """Return the seconds of each of ``BLOCK`` calls, after a warm-up."""
    seconds = []
    for _ in range(WARM_UP + BLOCK):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


if __name__ == "__main__":
    main()
