"""What was chosen on held-out training images, under the `short` protocol."""

from __future__ import annotations

# Learning rate and weight decay of each arm and control: the best of 'torchdfa paper table sweep', on CIFAR-10; a test
# holds them to the result files.
TUNED: dict[str, tuple[float, float]] = {
    "bp": (0.01, 0.02),
    "cdfa-product": (0.003, 0.02),
    "cbdfa-random": (0.003, 0.02),
    "cbdfa-product": (0.003, 0.005),
    "bp-bn": (0.03, 0.02),
    "cdfa-random": (0.003, 0.02),
    "cdfa-bn": (0.01, 0.02),
    "cbdfa-bn": (0.01, 0.02),
    "frozen": (0.01, 0.02),
    "bp-one-layer": (0.01, 0.02),
    "fixed-classifier": (0.03, 0.02),
    "bp-dropout": (0.003, 0.005),
    "bp-conv-rate": (0.01, 0.02),
    "cbdfa-unit": (0.001, 0.005),
    "bp-conv-rate-unit": (0.001, 0.02),
    "cbdfa-random-unit": (0.0001, 0.02),
    "cbdfa-random-match": (0.003, 0.02),
    "cbdfa-transpose": (0.01, 0.02),
    "cbdfa-he": (0.01, 0.02),
    "conv-only": (0.03, 0.02),
    "dfa-all": (0.01, 0.02),
}
# Batch size, learning rate and weight decay for few images: the best of 'torchdfa paper table small-sweep'; a test
# holds them to the result files.
SMALL_TUNED: dict[int, dict[str, tuple[int, float, float]]] = {
    1000: {"bp": (50, 0.01, 0.02), "cbdfa-product": (50, 0.003, 0.02)},
    5000: {"bp": (50, 0.01, 0.02), "cbdfa-product": (50, 0.003, 0.005)},
}
