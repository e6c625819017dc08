"""SVHN as RTK trains on it (arXiv 2206.12788): batch 128, 50 epochs, rate 0.001.

    python -m atkd_jax.main --config=configs/svhn.py:method=rtk,pair=r56_r20 --workdir=DIR

The paper drops the rate "at 150, 180 and 210" of 50 epochs; here at the same fractions. It flips
images in all experiments, and so does this, although digits are not symmetric:
`--config.data.augment.flip=False`. `--config.data.options.extra=True` adds 531,131 images.
"""

from atkd_jax.data import Svhn
from atkd_jax.training import settings
from configs import cifar10


def get_config(arg: str = ""):
    config = cifar10.get_config(arg)
    config.data.update(name="svhn", options=settings.defaults(Svhn))
    config.batch_size, config.epochs = 128, 50
    config.optimizer.lr = config.teacher.lr = 0.001
    config.schedule.milestones = (31, 37, 44)
    return config
