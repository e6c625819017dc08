"""Teacher -> student pairs, and what a pair changes in a method's preset.

    PAIRS[name] = {teacher, student, lr (of the student, if not the recipe's), methods: {method:
    fields of its term}}

Pairs of RTK (arXiv 2206.12788, figure 4), of the CRD benchmark (arXiv 1910.10699, github
HobbitLong/RepDistiller README) and of this project's own AT-KD.

DKD's beta: github megvii-research/mdistiller configs/cifar100/dkd. ReviewKD's weight: github
dvlab-research/ReviewKD CIFAR-100 scripts; for ResNet-50 -> MobileNetV2, mdistiller issue 39. AT
keeps the benchmark's 1000 for every pair: nobody has published another for MobileNetV2 students,
for whom it is harmful (58.58 against 64.60 alone on CIFAR-100, RepDistiller README).
"""


def pair(teacher: str, student: str, **methods) -> dict:
    return dict(teacher=teacher, student=student, methods=methods)


def mobile(teacher: str, student: str, **methods) -> dict:
    """MobileNetV2 and ShuffleNet students learn at 0.01 in the benchmark."""
    return dict(teacher=teacher, student=student, lr=0.01, methods=methods)


PAIRS = {
    # RTK's seven; the first four are the benchmark's as well.
    "r56_r20": pair("resnet56", "resnet20", dkd=dict(beta=2.0), reviewkd=dict(weight=0.6)),
    "r110_r20": pair(
        "resnet110", "resnet20", afd=dict(teacher_stride=2), rtk=dict(teacher_stride=2)
    ),
    "r110_r56": pair(
        "resnet110", "resnet56", afd=dict(teacher_stride=2), rtk=dict(teacher_stride=2)
    ),
    "wrn_40_2_wrn_16_2": pair(
        "wrn_40_2", "wrn_16_2", dkd=dict(beta=6.0), reviewkd=dict(weight=5.0)
    ),
    "wrn_40_2_wrn_40_2": pair("wrn_40_2", "wrn_40_2"),
    "wrn_40_2_r56": pair("wrn_40_2", "resnet56"),
    "r34_wrn_28_2": pair("resnet34_cifar", "wrn_28_2"),
    # The rest of the benchmark's.
    "wrn_40_2_wrn_40_1": pair(
        "wrn_40_2", "wrn_40_1", dkd=dict(beta=6.0), reviewkd=dict(weight=5.0)
    ),
    "r110_r32": pair(
        "resnet110",
        "resnet32",
        dkd=dict(beta=2.0),
        reviewkd=dict(weight=1.0),
        afd=dict(teacher_stride=2),
        rtk=dict(teacher_stride=2),
    ),
    "r32x4_r8x4": pair("resnet32x4", "resnet8x4", dkd=dict(beta=8.0), reviewkd=dict(weight=5.0)),
    "vgg13_vgg8": pair("vgg13", "vgg8", dkd=dict(beta=6.0)),
    "vgg13_mv2_half": mobile("vgg13", "mobilenetv2_half", dkd=dict(beta=6.0)),
    "r50_mv2_half": mobile(
        "resnet50_cifar", "mobilenetv2_half", dkd=dict(beta=8.0), reviewkd=dict(weight=30.0)
    ),
    "r50_vgg8": pair("resnet50_cifar", "vgg8"),
    "r32x4_shufflev1": mobile(
        "resnet32x4", "shufflenetv1", dkd=dict(beta=8.0), reviewkd=dict(weight=5.0)
    ),
    "r32x4_shufflev2": mobile(
        "resnet32x4", "shufflenetv2", dkd=dict(beta=8.0), reviewkd=dict(weight=8.0)
    ),
    "wrn_40_2_shufflev1": mobile(
        "wrn_40_2", "shufflenetv1", dkd=dict(beta=8.0), reviewkd=dict(weight=5.0)
    ),
    # This project's: a student of the same four resolutions as its teacher.
    "r50_mv2": mobile("resnet50_cifar", "mobilenetv2_cifar", dkd=dict(beta=8.0)),
    # Small ones, for machines without an accelerator.
    "r20_r8": pair("resnet20", "resnet8", dkd=dict(beta=2.0), reviewkd=dict(weight=0.6)),
    "r56_r8": pair("resnet56", "resnet8", dkd=dict(beta=2.0), reviewkd=dict(weight=0.6)),
    "r20_mv2_x0.5": mobile("resnet20", "mobilenetv2_cifar_x0.5"),
}

IMAGENET = {
    # Published for MobileNetV1, which papers call V2 here; nobody has published any for V2.
    "r50_mv2": pair("resnet50", "mobilenetv2", dkd=dict(beta=2.0), reviewkd=dict(weight=8.0)),
    # mdistiller configs/imagenet/r50_mv1; 256 channels in the middle as in ReviewKD's own code.
    "r50_mv1": pair(
        "resnet50",
        "mobilenetv1",
        dkd=dict(beta=2.0),
        reviewkd=dict(weight=8.0, max_mid_channels=256),
    ),
    "r34_r18": pair("resnet34", "resnet18", dkd=dict(beta=0.5), reviewkd=dict(weight=1.0)),
}
