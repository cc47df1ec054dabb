"""What was chosen on held-out training images, under the `short` protocol; a test holds it to the result files."""

from __future__ import annotations

# Learning rate and weight decay of each arm and control: the best of 'torchdfa paper table sweep'.
TUNED: dict[str, dict[str, tuple[float, float]]] = {
    "cifar10": {
        "bp": (0.01, 5e-3),
        "cdfa-product": (0.003, 5e-3),
        "cbdfa-random": (0.003, 5e-3),
        "cbdfa-product": (0.003, 5e-3),
        "bp-bn": (0.01, 5e-3),
        "cdfa-random": (0.003, 5e-3),
        "cdfa-bn": (0.003, 5e-3),
        "cbdfa-bn": (0.003, 5e-3),
        "frozen": (0.01, 5e-3),
        "bp-one-layer": (0.01, 5e-3),
        "fixed-classifier": (0.01, 5e-3),
        "bp-dropout": (0.01, 5e-3),
        "bp-conv-rate": (0.003, 5e-3),
        "cbdfa-unit": (0.001, 5e-3),
        "bp-conv-rate-unit": (0.001, 5e-3),
        "cbdfa-random-unit": (0.0003, 5e-3),
        "cbdfa-random-match": (0.003, 5e-3),
        "cbdfa-transpose": (0.003, 5e-3),
        "cbdfa-he": (0.003, 5e-3),
        "conv-only": (0.01, 5e-3),
        "dfa-all": (0.003, 5e-3),
    },
    "cifar100": {
        "bp": (0.01, 5e-3),
        "cdfa-product": (0.003, 5e-3),
        "cbdfa-random": (0.003, 5e-3),
        "cbdfa-product": (0.003, 5e-3),
        "bp-bn": (0.01, 5e-3),
        "cdfa-random": (0.003, 5e-3),
        "cdfa-bn": (0.003, 5e-3),
        "cbdfa-bn": (0.003, 5e-3),
    },
}
# Batch size, learning rate and weight decay for few images: the best of 'torchdfa paper table small-sweep'.
SMALL_TUNED: dict[int, dict[str, tuple[int, float, float]]] = {
    1000: {"bp": (10, 0.003, 5e-3), "cbdfa-product": (10, 0.003, 5e-3)},
    5000: {"bp": (50, 0.01, 5e-3), "cbdfa-product": (50, 0.003, 5e-3)},
}
