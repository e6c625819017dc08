"""Presets: the weight of the hard labels and of every term, as published for CIFAR.

Weights: RepDistiller's run_cifar_distill.sh (github HobbitLong/RepDistiller) unless a line says
otherwise. `gamma` there is `ce_weight` here, `alpha` the weight of kd, `beta` that of the method.
"""

KD = dict(weight=0.9, temperature=4.0)

METHODS = {
    "none": dict(ce_weight=1.0, terms={}),
    "kd": dict(ce_weight=0.1, terms=dict(kd=KD)),
    "at": dict(ce_weight=1.0, terms=dict(at=dict(weight=1000.0))),
    "at_kd": dict(ce_weight=0.1, terms=dict(kd=KD, at=dict(weight=1000.0))),
    # AT-KD of the project's poster, which gives no weights: KD's, and an attention term about as
    # large as the KD term after the first epoch (ResNet-20 -> ResNet-8 on CIFAR-10, measured: KL
    # 11.5, attention 0.23).
    "atkd": dict(ce_weight=0.1, terms=dict(kd=KD, self_attention=dict(weight=50.0))),
    # The poster's formula to the letter: alpha KL + beta MSE, no hard labels.
    "atkd_poster": dict(
        ce_weight=0.0,
        terms=dict(kd=dict(weight=1.0, temperature=4.0), self_attention=dict(weight=50.0)),
    ),
}
