"""The figures of Han & Yoo (2019), Tables 1 and 2: top-1 and top-5 test accuracy in percent."""

from __future__ import annotations

# Table 1, "CNN Training Result in CIFAR-10 & CIFAR-100 (Small Learning Rate)"
TABLE_1 = {
    "cifar10": {
        "bp": (81.11, 98.63),
        "bp-bn": (76.91, 98.24),
        "cdfa-random": (88.68, 98.42),
        "cdfa-product": (86.36, 98.55),
        "cdfa-bn": (87.41, 98.56),
        "cbdfa-random": (89.39, 98.63),
        "cbdfa-product": (87.65, 98.88),
        "cbdfa-bn": (86.46, 98.83),
    },
    "cifar100": {
        "bp": (40.29, 67.80),
        "bp-bn": (37.80, 63.91),
        "cdfa-random": (61.42, 77.05),
        "cdfa-product": (48.24, 72.82),
        "cdfa-bn": (55.11, 77.55),
        "cbdfa-random": (59.92, 75.07),
        "cbdfa-product": (47.48, 71.92),
        "cbdfa-bn": (54.47, 76.85),
    },
}
# Table 2, "CNN Training Result with Data Augmentation (CIFAR-10)"
TABLE_2 = {
    "bp": (82.33, 99.15),
    "cbdfa": (87.35, 99.07),
    "conv-only": (82.06, 98.84),
    "bp-augmented": (87.97, 99.33),
    "cbdfa-augmented": (90.13, 99.49),
    "conv-only-augmented": (88.48, 99.46),
}
