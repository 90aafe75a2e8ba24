"""The trained network of the quick start, and how many of the digits that it never saw it gets right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tactician

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "digits"
MODEL, BATCH = FOLDER / "digits.onnx", 32
SHAPES = {"input": (BATCH, 1, 8, 8)}


def right(engine: tactician.Engine) -> int:
    """Return how many of the held-out digits an engine of ``MODEL`` with ``SHAPES`` gets right."""
    sys.path.insert(0, str(FOLDER))
    try:
        from data import split
    finally:
        sys.path.remove(str(FOLDER))
    _, (images, labels) = split()
    session = tactician.Session(engine)
    batches = np.split(images, len(images) // BATCH)
    logits = np.concatenate([session.run({"input": batch})["logits"].copy() for batch in batches])
    return int((logits.argmax(1) == labels).sum())
