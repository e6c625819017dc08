"""Published facts of data sets, and facts measured on images: classes, counts, mean and deviation.

Means and standard deviations are per channel, of training pixels in 0..1.
"""

from __future__ import annotations

import numpy as np

from atkd_jax.types import DataInfo

CIFAR10_CLASSES = tuple(
    "airplane automobile bird cat deer dog frog horse ship truck".split()
)  # https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)  # https://www.cs.toronto.edu/~kriz/cifar.html, the 100 fine classes
DIGITS = tuple("0123456789")

# Per channel, of ImageNet's training pixels: https://github.com/pytorch/examples, imagenet/main.py.
# Published weights expect them, so every streamed set of photographs uses them as well.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Examples for training and for testing: Russakovsky et al. 2015, arXiv 1409.0575.
IMAGENET_SIZES = (1_281_167, 50_000)
# Of a training image: ILSVRC2012_img_train.tar has 147,897,477,120 bytes, its JPEGs are stored.
IMAGENET_BYTES = 147_897_477_120 // 1_281_167

KNOWN = {
    info.name: info
    for info in (
        # Krizhevsky 2009. Mean and deviation computed from the training images.
        DataInfo(
            name="cifar10",
            image_shape=(32, 32, 3),
            class_names=CIFAR10_CLASSES,
            num_train=50_000,
            num_test=10_000,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        # Krizhevsky 2009. Mean and deviation: https://github.com/HobbitLong/RepDistiller.
        DataInfo(
            name="cifar100",
            image_shape=(32, 32, 3),
            class_names=CIFAR100_CLASSES,
            num_train=50_000,
            num_test=10_000,
            mean=(0.5071, 0.4867, 0.4408),
            std=(0.2675, 0.2565, 0.2761),
        ),
        # Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers. Mean and deviation: those of
        # the 73,257 training images, as in most published code.
        DataInfo(
            name="svhn",
            image_shape=(32, 32, 3),
            class_names=DIGITS,
            num_train=73_257,
            num_test=26_032,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
        ),
        # Darlow et al. 2018, arXiv 1810.03505; all three numbers from its README,
        # https://github.com/BayesWatch/cinic-10.
        DataInfo(
            name="cinic10",
            image_shape=(32, 32, 3),
            class_names=CIFAR10_CLASSES,
            num_train=90_000,
            num_test=90_000,
            mean=(0.47889522, 0.47227842, 0.43047404),
            std=(0.24205776, 0.23828046, 0.25874835),
        ),
    )
}
SVHN_EXTRA = 531_131  # easier images that may be added to SVHN's training set
CINIC10_VALIDATION = 90_000  # images that may be added to CINIC-10's training set


def measure_info(
    name: str,
    image: np.ndarray,
    label: np.ndarray,
    num_test: int,
    class_names: tuple[str, ...],
) -> DataInfo:
    """The facts of a data set that are computed from its training images.

    Args:
      image: [N, H, W, 3] uint8, the training images.
      label: [N] int32, their classes.
    """
    mean, std = channel_moments(image)
    return DataInfo(
        name=name,
        image_shape=image.shape[1:],
        class_names=class_names,
        num_train=len(image),
        num_test=num_test,
        mean=mean,
        std=std,
        train_label=label,
    )


def channel_moments(
    image: np.ndarray,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Per-channel mean and standard deviation of [N, H, W, 3] uint8 pixels scaled to 0..1.

    A constant channel gets the deviation of one grey level, so that one can divide by it.
    """
    # Counting grey levels is exact and needs no float copy of the images.
    level = np.arange(256) / 255.0
    counts = np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)])
    p = counts / counts.sum(1, keepdims=True)  # [3, 256]
    mean = p @ level
    std = np.sqrt(np.maximum(p @ level**2 - mean**2, 0.0))
    red, green, blue = zip(mean.tolist(), np.maximum(std, 1 / 255).tolist(), strict=True)
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])
