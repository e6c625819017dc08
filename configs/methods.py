"""Presets: the weight of the hard labels and of every term, as published.

    METHODS[name] = {ce_weight, terms: {method: {weight, warmup_epochs or warmup_steps, fields that
    differ from the method's own defaults}}}

CIFAR weights are those of RepDistiller's run_cifar_distill.sh (github HobbitLong/RepDistiller)
unless a line says otherwise; `gamma` there is `ce_weight` here, `alpha` the weight of kd, `beta`
that of the method. Changes for a pair of networks are in pairs.py. A warm-up is linear in the
steps, from zero; mdistiller's goes up once an epoch, from 1 / epochs in the first.
"""

from atkd_jax import methods

KD = dict(weight=0.9)
# Of self_attention. The warm-up is for runs of tens of steps (docs/atkd.md).
ATTENTION = dict(weight=3.0, warmup_steps=100)
# The map and the error of the poster.
POSTER = dict(scale=10.0, center=False, relative=False, balance=False)


def alone(method: str, weight: float, **fields) -> dict:
    """CE with weight 1 plus one term, which is how the benchmark runs every method but KD."""
    return dict(ce_weight=1.0, terms={method: dict(weight=weight, **fields)})


METHODS = {
    "none": dict(ce_weight=1.0, terms={}),
    "kd": dict(ce_weight=0.1, terms=dict(kd=KD)),
    "fitnet": alone("fitnet", 100.0),
    "at": alone("at", 1000.0),
    "sp": alone("sp", 3000.0),
    "cc": alone("cc", 0.02),
    "vid": alone("vid", 1.0),
    "rkd": alone("rkd", 1.0),
    "pkt": alone("pkt", 30000.0),
    "nst": alone("nst", 50.0),
    # The benchmark uses FSP for 30 epochs before training, without a weight; here it is a term.
    "fsp": alone("fsp", 1.0),
    "crd": alone("crd", 0.8),
    "crd_kd": dict(
        ce_weight=1.0,
        terms=dict(kd=dict(weight=1.0), crd=dict(weight=0.8)),
    ),
    # github clovaai/attention-feature-distillation main.py: CE + 0.9 KD + 200 AFD.
    "afd": dict(ce_weight=1.0, terms=dict(kd=KD, afd=dict(weight=200.0))),
    # No weights are published for RTK (arXiv 2206.12788); it builds on AFD's code.
    "rtk": dict(ce_weight=1.0, terms=dict(kd=KD, rtk=dict(weight=200.0))),
    # A reconstruction, see atkd_jax/methods/aft.py; it contains its own KD term.
    "aft": alone("aft", 1.0),
    # github megvii-research/mdistiller configs/cifar100/dkd: 20 epochs of warm-up.
    "dkd": alone("dkd", 1.0, warmup_epochs=20.0),
    # github dvlab-research/ReviewKD CIFAR-100: 20 epochs of warm-up.
    "reviewkd": alone("reviewkd", 1.0, warmup_epochs=20.0),
    # A method beside KD's two terms.
    "at_kd": dict(ce_weight=0.1, terms=dict(kd=KD, at=dict(weight=1000.0))),
    "fitnet_kd": dict(ce_weight=0.1, terms=dict(kd=KD, fitnet=dict(weight=100.0))),
    "nst_kd": dict(ce_weight=0.1, terms=dict(kd=KD, nst=dict(weight=50.0))),
    # AT-KD with the attention term of atkd_jax/methods/self_attention.py. docs/atkd.md says how its
    # weight was chosen.
    "atkd": dict(ce_weight=0.1, terms=dict(kd=KD, self_attention=ATTENTION)),
    # The formula of the project's poster to the letter: alpha KL + beta MSE, no hard labels. It
    # gives no weights: KD's, and an attention term about as large after the first epoch (KL 11.5,
    # attention 0.23 for the same pair).
    "atkd_poster": dict(
        ce_weight=0.0,
        terms=dict(kd=dict(weight=1.0), self_attention=dict(weight=50.0) | POSTER),
    ),
}

# A method that is in none of these presets has weight 1 beside the hard labels.
_used = {term for preset in METHODS.values() for term in preset["terms"]}
METHODS |= {name: alone(name, 1.0) for name in methods.METHODS if name not in _used}

KD_T1 = dict(weight=0.5, temperature=1.0)

# What differs on ImageNet; a method that is not here has no published ImageNet weight and keeps
# CIFAR's.
IMAGENET = {
    # mdistiller configs/imagenet: 0.5 CE + 0.5 KL at T = 1.
    "kd": dict(ce_weight=0.5, terms=dict(kd=KD_T1)),
    # PaddleClas resnet34_distill_resnet18_afd.yaml: beta 50.
    "afd": dict(ce_weight=1.0, terms=dict(kd=KD, afd=dict(weight=50.0))),
    # mdistiller configs/imagenet: T = 1; beta 0.5 for ResNet-34 -> ResNet-18. No warm-up: its one
    # epoch ends at the start of the first, because its epochs count from 1.
    "dkd": alone("dkd", 1.0, alpha=1.0, beta=0.5, temperature=1.0),
    # ReviewKD on ImageNet reads the student before the activation; no warm-up, as above.
    "reviewkd": alone("reviewkd", 1.0, student_pre=True),
    "at_kd": dict(ce_weight=0.5, terms=dict(kd=KD_T1, at=dict(weight=1000.0))),
    # Maps of 14x14 positions; the weights are CIFAR's, not measured on ImageNet.
    "atkd": dict(
        ce_weight=0.5,
        terms=dict(kd=KD_T1, self_attention=ATTENTION | dict(max_size=14)),
    ),
    "atkd_poster": dict(
        ce_weight=0.0,
        terms=dict(
            kd=dict(weight=1.0, temperature=1.0),
            self_attention=dict(weight=50.0, max_size=14) | POSTER,
        ),
    ),
}
