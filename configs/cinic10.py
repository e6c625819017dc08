"""CINIC-10 as RTK trains on it (arXiv 2206.12788): 90,000 images, CIFAR's recipe.

    python -m atkd_jax.main --config=configs/cinic10.py:method=rtk,pair=r56_r20 --workdir=DIR

The paper's "270,000 images" are all three splits; its accuracies are consistent with training on
the first 90,000. `--config.data.options.train=train+validation` trains on 180,000.
"""

from atkd_jax.data import Cinic10
from atkd_jax.training import settings
from configs import cifar10


def get_config(arg: str = ""):
    config = cifar10.get_config(arg)
    config.data.update(name="cinic10", options=settings.defaults(Cinic10))
    return config
