"""CIFAR with few training images and a number of steps instead of epochs.

    python -m atkd_jax.main --config=configs/few_images.py:method=fitnet_kd,images=5000,steps=3125 \
      --config.teacher.weights=resnet20-12fca82f.th --workdir=DIR

A step costs the same however many images there are, so that `steps` is what one pays; it is rounded
to whole epochs. Batch 64, float32, one-cycle to twice the rate of the pair's recipe: 0.1, for
MobileNets 0.02. Other options after the colon: data, pair and teacher, for CIFAR-100
`data=cifar100,pair=r56_r20,teacher=chenyaofo`. `--config.data.subset.seed=N` chooses other images.
"""

from atkd_jax.data.info import KNOWN
from atkd_jax.errors import UserError
from configs import cifar10, common

CHECKPOINTS = 4


def get_config(arg: str = ""):
    defaults = dict(method="atkd", pair="r20_r8", teacher="akamaster", data="cifar10")
    options = common.parse(arg, defaults | dict(images="5000", steps="3125"))
    sizes = {name: KNOWN[name].num_train for name in ("cifar10", "cifar100")}
    most = common.lookup("data set", options["data"], sizes)
    images, steps = (positive(key, options[key]) for key in ("images", "steps"))
    config = cifar10.get_config(
        ",".join(f"{k}={options[k]}" for k in ("method", "pair", "teacher"))
    )
    if not config.batch_size <= images <= most:
        raise UserError(f"images={images} is not between a batch, {config.batch_size}, and {most}")
    config.data.name = options["data"]
    if images < most:
        config.data.subset.images = images
    config.epochs = max(1, round(steps / (images // config.batch_size)))
    config.test_every_epochs = -(-config.epochs // 2)  # a test takes as long as 40 steps
    config.checkpoint.every_epochs = -(-config.epochs // CHECKPOINTS)
    config.schedule.update(name="onecycle", warmup_epochs=config.epochs / 4)
    config.optimizer.lr *= 2
    config.teacher.lr *= 2
    for term in config.terms.values():
        if "warmup_epochs" in term:  # DKD's 20 of 240
            term.warmup_epochs *= config.epochs / 240
    return config


def positive(key: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(f"{key}={text} is no positive whole number")
    return int(text)
