"""Teacher -> student pairs, and what a pair changes in a method's preset."""

PAIRS = {
    "r56_r20": dict(teacher="resnet56", student="resnet20"),
    "r20_r8": dict(teacher="resnet20", student="resnet8"),
    "r56_r8": dict(teacher="resnet56", student="resnet8"),
    "r50_mv2": dict(teacher="resnet50_cifar", student="mobilenetv2_cifar"),
}
