"""CIFAR-10 with the recipe of the CRD benchmark (RepDistiller): 240 epochs, batch 64.

    python -m atkd_jax.main --config=configs/cifar10.py:method=atkd,pair=r50_mv2 --workdir=DIR

`teacher=akamaster` after the colon sets what the published ResNets of github
akamaster/pytorch_resnet_cifar10 were trained with: option A shortcuts, ImageNet's mean and std.

Without TensorFlow: `--config.data.data_dir=FOLDER`, which holds cifar-10-binary.tar.gz, packed or
unpacked, from https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from configs import common


def get_config(arg: str = ""):
    options = common.parse(arg, dict(method="atkd", pair="r56_r20", teacher=""))
    config = common.get_config()
    config.data.name = "cifar10"
    config.data.augment.update(pad=4, flip=True)
    common.set_method(config, options["method"])
    common.set_pair(config, options["pair"])
    if options["teacher"]:
        common.lookup("teacher", options["teacher"], {"akamaster": None})
        config.teacher.model += "a"
        config.teacher.mean = (0.485, 0.456, 0.406)
        config.teacher.std = (0.229, 0.224, 0.225)
    return config
