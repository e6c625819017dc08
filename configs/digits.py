"""Scikit-learn's 1,797 handwritten digits: the whole job in seconds, without a download.

python -m atkd_jax.main --config=configs/digits.py:method=kd --workdir=DIR
"""

from configs import common


def get_config(arg: str = ""):
    options = common.parse(arg, dict(method="atkd"))
    config = common.get_config()
    common.set_method(config, options["method"])
    config.student, config.teacher.model = "resnet8", "resnet20"
    config.data.augment.update(pad=1)
    config.epochs = 12
    config.teacher.epochs = 12
    config.schedule.update(name="onecycle", warmup_epochs=2.0)
    config.optimizer.lr = 0.1
    return config
