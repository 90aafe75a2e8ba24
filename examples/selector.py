"""An algorithm selector: sees every candidate of every node, and overrules the builder's choice.

    python examples/selector.py

Builds the digits network for the CPU twice: as the builder would, and with a selector that keeps to one
family of tactics wherever that has a candidate. Then says what that cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from tactician import AlgorithmSelector, BuilderConfig, Engine, Session, build
from tactician.tactics.selector import AlgorithmChoice, AlgorithmContext

MODEL = Path(__file__).parent / "digits" / "digits.onnx"
SHAPE = (32, 1, 8, 8)


class Prefer(AlgorithmSelector):
    """Takes the fastest candidate that matches ``pattern``; without one, leaves the choice to the builder."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.left_alone: list[str] = []

    def select_algorithms(self, context: AlgorithmContext, choices: Sequence[AlgorithmChoice]) -> list[int]:
        preferred = [i for i, choice in enumerate(choices) if fnmatch(choice.tactic, self.pattern)]
        if not preferred:
            self.left_alone += context.nodes
        return preferred

    def report_algorithms(
        self, contexts: Sequence[AlgorithmContext], choices: Sequence[AlgorithmChoice]
    ) -> None:
        print(f"{'node':44} {'tactic':40} {'time':>10}")
        for context, choice in zip(contexts, choices, strict=True):
            time = "-" if choice.timing is None else f"{choice.timing * 1e6:.1f} us"
            print(f"{context.name:44} {choice.tactic:40} {time:>10}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pattern", nargs="?", default="builtin.reference*", help="tactics to prefer")
    pattern = parser.parse_args().pattern

    config = BuilderConfig(shapes={"input": SHAPE}, target="cpu")
    selector = Prefer(pattern)
    default = build(MODEL, config)
    selected = build(MODEL, config, selector=selector)

    print(f"no candidate matched '{pattern}' for: {', '.join(selector.left_alone) or 'none'}")
    images = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    logits = [Session(engine).run({"input": images})["logits"] for engine in (default, selected)]
    difference = np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0])
    print(f"times of the chosen tactics: {total(default):.1f} us by default, {total(selected):.1f} us so")
    print(f"relative difference of the outputs: {difference:.1e}")


def total(engine: Engine) -> float:
    """Return the microseconds of all nodes' tactics, as measured one by one."""
    decisions = engine.report.decisions
    return 1e6 * sum(len(d.nodes) * d.winner.timing.median for d in decisions if d.winner.timing)


if __name__ == "__main__":
    main()
