"""Options of the data set."""

from dataclasses import dataclass

from kdedge.options import option

__all__ = ["DataConfig"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how the training images are split."""

    source: str = option("cifar10", "Data set: cifar10, sample or folder:PATH.", flag="--data")
    dir: str = option(
        "",
        "Folder with CIFAR-10 in an official format. If not given, CIFAR-10 comes from the cache or a download.",
        flag="--data-dir",
    )
    image_size: int = option(32, "Side length of the images in pixels.", flag="--image-size", least=16, most=512)
    val_fraction: float = option(
        0.1, "Share of the training images held out for validation.", flag="--val-fraction", least=0.01, most=0.5
    )
    test_fraction: float = option(
        0.2, "Share of test images if a folder has no train/ and test/.", flag="--test-fraction", least=0.05, most=0.5
    )
    train_size: int = option(
        0, "Number of training images, stratified by class (0 = all).", flag="--train-size", least=0
    )
