"""Every key of a configuration and its default.

Sections that belong to a dataclass (augment, mix, optimizer, schedule, and the fields of a term)
have its fields, whose documentation explains them.
"""

from ml_collections import ConfigDict

from atkd_jax.data import Digits
from atkd_jax.data.augment import Augment
from atkd_jax.data.mix import Mix
from atkd_jax.data.subset import Subset
from atkd_jax.errors import check_known
from atkd_jax.methods import find
from atkd_jax.training import settings
from atkd_jax.training.objective import Objective
from atkd_jax.training.optim import Optimizer, Schedule
from atkd_jax.training.step import TrainStep
from configs import methods, pairs


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name="digits",  # see atkd_jax/data, or npz:PATH for your own
                data_dir="",  # of TFDS and CIFAR; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
                # The data set's own, such as svhn's extra, see atkd_jax/data; all have image_size,
                # and 0 means the images' own.
                options=settings.defaults(Digits),
                subset=settings.defaults(Subset),
                augment=settings.defaults(Augment),
                mix=settings.defaults(Mix),
            ),
            student="resnet8",
            teacher=dict(
                model="",  # only read if there are terms
                weights="",  # export/ of a run, or a file of PyTorch or safetensors; empty: train
                weights_key="",  # key within such a file, as "state_dict_ema"; empty: no average
                expect_top1=0.0,  # stop if the teacher is further than half a point from it
                mean=(),  # of pixels in 0..1, 3 numbers, as such a file was trained with; empty:
                std=(),  # the data set's (an export contains its own)
                epochs=0,  # of its own training; 0: as the student's
                lr=0.0,
            ),
            ce_weight=Objective.ce_weight,
            label_smoothing=Objective.label_smoothing,  # of the cross-entropy with the labels
            terms=dict(),  # method or MODULE:NAME -> {weight, warm-up, its own fields}
            batch_size=64,  # of all devices together
            accumulate=TrainStep.accumulate,  # micro-batches per step, to save memory
            epochs=240,
            test_every_epochs=1,  # the last epoch is always tested
            optimizer=settings.defaults(Optimizer),
            schedule=settings.defaults(Schedule),
            ema=TrainStep.ema,  # decay of the student's average, then tested and exported; 0: none
            dtype="float32",  # or bfloat16, of the networks; parameters and losses are float32
            parallel="shard_map",  # or pmap, none
            sync_batch_norm=True,  # else every device normalises with statistics of its own part
            dry_run=False,  # print the plan of the run, compile its step, and stop
            topology="",  # of a dry run: a slice of TPUs to compile for, as v5e:4x8
            steps_per_dispatch=0,  # 0: 50, on CPU 10, of a stream 1
            checkpoint=dict(every_epochs=1, every_steps=0, keep=2),
        )
    )


def parse(arg: str, defaults: dict[str, str]) -> dict[str, str]:
    """'method=kd,pair=r56_r20' -> a dict with every key of `defaults`."""
    given = {}
    for item in filter(None, arg.split(",")):
        key, _, value = item.partition("=")
        lookup("option", key, defaults)
        given[key] = value
    return defaults | given


def lookup(what: str, name: str, table: dict):
    """table[name], or a UserError with the nearest match."""
    check_known(what, name, table)
    return table[name]


def set_method(config: ConfigDict, name: str, imagenet: bool = False) -> None:
    """Fills in ce_weight and terms, with every hyper-parameter, so that each can be overridden."""
    table = methods.METHODS | (methods.IMAGENET if imagenet else {})
    preset = lookup("method", name, table)
    config.ce_weight, config.terms = preset["ce_weight"], {}
    for term, fields in preset["terms"].items():
        config.terms[term] = settings.defaults(find(term))
        config.terms[term].update(fields)


def set_pair(config: ConfigDict, name: str, imagenet: bool = False) -> None:
    """Fills in teacher and student, and what the pair changes in the terms chosen before."""
    pair = lookup("pair", name, pairs.IMAGENET if imagenet else pairs.PAIRS)
    config.teacher.model, config.student = pair["teacher"], pair["student"]
    if "lr" in pair:
        config.teacher.lr, config.optimizer.lr = config.optimizer.lr, pair["lr"]
    for method, fields in pair["methods"].items():
        if method in config.terms:
            config.terms[method].update(fields)
