"""Your own photographs: PATH/train/CLASS/*.jpg|png and PATH/test|val/CLASS/*.jpg|png.

    python -m atkd_jax.main --config=configs/folder.py:method=kd,pair=r50_mv2 --workdir=DIR \
      --config.data.name=folder:PATH --config.epochs=100

ImageNet's recipe at batch 64 in float32: crops of random size, flipped, read from disk while
training. The teacher is trained first, on the same images. `--config.data.options.image_size=96`
makes smaller crops. A classification set of TensorFlow Datasets: `--config.data.name=tfds:NAME`.

For small images of one size CIFAR's recipe, in memory, is better; a run with an image of another
size is refused:

    python -m atkd_jax.main --config=configs/cifar10.py:method=kd,pair=r56_r20 --workdir=DIR \
      --config.data.name=folder:PATH
"""

from configs import imagenet


def get_config(arg: str = ""):
    config = imagenet.get_config(arg)
    config.data.name = "folder:images"
    config.teacher.update(weights="", expect_top1=0.0)
    config.batch_size, config.dtype = 64, "float32"
    return config
