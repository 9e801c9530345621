"""D-BR and D-ST on other images than CIFAR-10: CIFAR-100, and Imagenette in place of the paper's ImageNet subset."""

from __future__ import annotations

from benchmarks.cells import Cell
from benchmarks.classifiers import METRICS, purified_row, settings
from benchmarks.profiles import Profile
from benchmarks.study import Study

# ACC / ASR in %, as printed: backdoored, D-BR, D-ST.
PAPER_CIFAR100 = {
    "badnets": "71.23/99.13 72.58/0.25 68.43/0.12",
    "trojan": "75.75/100.00 74.52/0.00 68.04/0.08",
    "blend-strip": "75.54/99.99 74.35/0.00 67.63/0.00",
    "blend-kitty": "75.18/99.97 72.00/0.01 67.06/0.00",
}
# The same of 200 classes of ImageNet at 224 px, with a ResNet-18 that was pre-trained on ImageNet: backdoored, D-BR.
PAPER_IMAGENET = {
    "badnets": "84.72/95.80 83.66/0.00",
    "blend-strip": "84.36/97.64 80.40/0.00",
    "blend-kitty": "85.46/99.68 84.29/0.00",
    "ssba": "85.24/99.64 83.77/0.09",
}
CIFAR100 = {
    "paper": Profile(
        name="cifar100-paper",
        train="cifar100-train.parquet",
        test="cifar100-test.parquet",
        normalization="cifar100",
        image_size=32,
        architecture="resnet18-cifar",
    ),
    "small": Profile(
        name="cifar100-small",
        train="cifar100-train.parquet#0:10000",
        test="cifar100-test.parquet#0:2000",
        normalization="cifar100",
        image_size=32,
        architecture="small-cnn",
    ),
}
IMAGENETTE = {
    "paper": Profile(
        name="imagenette-paper",
        train="imagenette96-train.parquet",
        test="imagenette96-test.parquet",
        normalization="imagenet",
        image_size=96,
        architecture="resnet18",
    ),
    "small": Profile(
        name="imagenette-small",
        train="imagenette96-train.parquet#0:2000",
        test="imagenette96-test.parquet#0:800",
        normalization="imagenet",
        image_size=96,
        architecture="small-cnn",
    ),
}


def cifar100() -> list[Cell]:
    """Four attacks, purified by D-BR, or trained anew by D-ST."""
    return [
        cell for row, values in PAPER_CIFAR100.items() for cell in purified_row(row, ("none", "d-br", "d-st"), values)
    ]


def imagenette() -> list[Cell]:
    """Four attacks, purified by D-BR."""
    return [cell for row, values in PAPER_IMAGENET.items() for cell in purified_row(row, ("none", "d-br"), values)]


PARTS = {
    "cifar100": Study(
        "classifiers", "Purifying classifiers of CIFAR-100", cifar100, METRICS, preface=settings, profiles=CIFAR100
    ),
    "imagenette": Study(
        "classifiers", "Purifying classifiers of Imagenette", imagenette, METRICS, preface=settings, profiles=IMAGENETTE
    ),
}
