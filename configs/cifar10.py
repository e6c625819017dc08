"""CIFAR-10 with the recipe of the CRD benchmark (RepDistiller): 240 epochs, batch 64.

    python -m atkd_jax.main --config=configs/cifar10.py:method=atkd,pair=r50_mv2 --workdir=DIR

`teacher=akamaster` after the colon sets what the published ResNets of github
akamaster/pytorch_resnet_cifar10 were trained with: option A shortcuts, ImageNet's mean and std.
`teacher=chenyaofo` does so for those of github chenyaofo/pytorch-cifar-models on CIFAR-100.

Without TensorFlow: `--config.data.data_dir=FOLDER`, which holds cifar-10-binary.tar.gz, packed or
unpacked, from https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from configs import common

# Of published weights: what their networks are called here, after the pair's name; mean and std.
TEACHERS = {
    "akamaster": ("a", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "chenyaofo": ("", (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


def get_config(arg: str = ""):
    options = common.parse(arg, dict(method="atkd", pair="r56_r20", teacher=""))
    config = common.get_config()
    config.data.name = "cifar10"
    config.data.augment.update(pad=4, flip=True)
    common.set_method(config, options["method"])
    common.set_pair(config, options["pair"])
    if options["teacher"]:
        suffix, mean, std = common.lookup("teacher", options["teacher"], TEACHERS)
        config.teacher.update(model=config.teacher.model + suffix, mean=mean, std=std)
    return config
