"""CIFAR-100 with the recipe of the CRD benchmark (RepDistiller): 240 epochs, batch 64.

python -m atkd_jax.main --config=configs/cifar100.py:method=crd,pair=r56_r20 --workdir=DIR

Without TensorFlow: `--config.data.data_dir=FOLDER`, which holds cifar-100-binary.tar.gz, packed or
unpacked, from https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from configs import cifar10


def get_config(arg: str = ""):
    config = cifar10.get_config(arg)
    config.data.name = "cifar100"
    return config
