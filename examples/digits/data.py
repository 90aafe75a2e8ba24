"""The digits that train.py learns from and that quickstart.py holds out: 1797 scans of 8 x 8 pixels."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT = 448
"""Images that training never sees: 14 batches of 32."""

Arrays = tuple[np.ndarray, np.ndarray]


def split() -> tuple[Arrays, Arrays]:
    """Return ``(images, labels)`` for training and ``(images, labels)`` held out.

    Images are float32[N, 1, 8, 8] in 0 … 1, labels int64[N]. The split is the same on every machine.
    """
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=0, stratify=labels
    )
    return (images[train], labels[train]), (images[held_out], labels[held_out])
