"""ImageNet: a published ResNet-50 teaches a MobileNetV2. Global batch 1024, bfloat16.

    python -m atkd_jax.main --config=configs/imagenet.py:method=atkd,pair=r50_mv2 --workdir=DIR \
      --config.teacher.weights=resnet50-0676ba61.pth
    python -m atkd_jax.main --config=configs/imagenet.py --config.dry_run=True   # the plan, no data

NEVER RUN: no ImageNet was available. Checked: the step compiles for its shapes (dry run), and every
part is tested on small data.

The recipe is what MobileNetV2 is commonly trained with: cosine from 0.05 for a batch of 256 with
weight decay 4e-5 (72 % alone after 150 epochs: github tonylins/pytorch-mobilenet-v2), 5 epochs of
warm-up, label smoothing, no decay on batch norm and biases (GluonCV's logs of mobilenetv2,
batch_size=64 on 4 GPUs, no_wd). The rate grows with the batch (arXiv 1706.02677), so it is 0.2
here. 300 epochs are twice that recipe's; `epochs=100` after the colon is the track of published
distillation tables instead: rate 0.2 for a batch of 512, tenfold lower after 30, 60 and 90 epochs,
weight decay 1e-4, no smoothing (mdistiller configs/imagenet), but with warm-up for the batch and
without decay on batch norm.

The stream crops at random sizes (atkd_jax/data/decode.py); the device flips.
Weights of torchvision, https://download.pytorch.org/models: resnet50-0676ba61.pth (76.13 top-1),
resnet34-b627a593.pth (73.31).
"""

from atkd_jax.data import ImageNet
from atkd_jax.training import settings
from configs import common

TEACHERS = {
    "resnet50": ("resnet50-0676ba61.pth", 76.13),
    "resnet34": ("resnet34-b627a593.pth", 73.31),
}


def get_config(arg: str = ""):
    options = common.parse(arg, dict(method="atkd", pair="r50_mv2", epochs="300"))
    config = common.get_config()
    config.data.update(name="imagenet2012", options=settings.defaults(ImageNet))
    config.data.augment.flip = True
    common.set_method(config, options["method"], imagenet=True)
    common.set_pair(config, options["pair"], imagenet=True)
    config.teacher.weights, config.teacher.expect_top1 = TEACHERS[config.teacher.model]
    config.batch_size, config.dtype = 1024, "bfloat16"
    config.optimizer.decay_all = False
    config.epochs = int(options["epochs"])
    config.schedule.warmup_epochs = 5.0
    common.lookup("track of epochs", options["epochs"], TRACKS)(config)
    return config


def cosine(config):
    config.optimizer.update(lr=0.05, reference_batch=256, nesterov=True, weight_decay=4e-5)
    config.schedule.name = "cosine"
    config.label_smoothing = 0.1


def steps(config):
    config.optimizer.update(lr=0.2, reference_batch=512, weight_decay=1e-4)
    config.schedule.update(name="step", milestones=(30, 60, 90))


TRACKS = {"300": cosine, "100": steps}
