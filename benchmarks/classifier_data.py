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


def _profiles(
    name: str, files: str, image_size: int, normalization: str, backbone: str, few: tuple[int, int]
) -> dict[str, Profile]:
    """`paper` has all images of a data set, `small` the first few: of the training, of the test."""
    first, tested = few
    scales = {"paper": ("", "", backbone), "small": (f"#0:{first}", f"#0:{tested}", "small-cnn")}
    return {
        scale: Profile(
            name=f"{name}-{scale}",
            train=f"{files}-train.parquet{train}",
            test=f"{files}-test.parquet{test}",
            normalization=normalization,
            image_size=image_size,
            architecture=architecture,
        )
        for scale, (train, test, architecture) in scales.items()
    }


CIFAR100 = _profiles("cifar100", "cifar100", 32, "cifar100", "resnet18-cifar", (10_000, 2_000))
IMAGENETTE = _profiles("imagenette", "imagenette96", 96, "imagenet", "resnet18", (2_000, 800))


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
