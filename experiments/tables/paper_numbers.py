"""Published numbers, as printed: grids with a header of pairs or data sets, and a row per method.

A dash means that the source prints no number. Numbers whose source could not be opened are left
out.
"""

# Yang et al. 2022, arXiv 2206.12788, Table 1: top-1, ResNet-56 -> ResNet-20.
RTK_TABLE1 = """
          cifar10 cifar100
none      92.37   69.89
kd        93.28   70.98
fitnet    92.56   70.05
at        93.00   70.56
rkd       93.29   70.43
crd       92.66   70.95
afd       93.26   71.53
rtk       93.40   71.75
teacher   94.08   72.81
"""

# Table 2: top-1. The student of the third pair is its teacher's network.
RTK_TABLE2 = {
    "r56_r20": """
          cifar10 cifar100 svhn  cinic10
teacher   94.08   72.81    95.05 83.56
none      92.37   69.89    92.77 81.80
rtk       93.40   71.75    94.36 83.35
""",
    "r34_wrn_28_2": """
          cifar10 cifar100 svhn  cinic10
teacher   95.45   79.43    98.56 86.71
none      94.78   75.69    95.50 85.19
rtk       95.35   77.56    96.43 85.95
""",
    "wrn_40_2_wrn_40_2": """
          cifar10 cifar100 svhn  cinic10
teacher   94.84   76.20    96.15 85.33
none      94.84   76.20    96.15 85.33
rtk       95.39   78.47    96.49 86.57
""",
}

# Table 3: "average ROC", ResNet-56 -> ResNet-20, in percent.
RTK_TABLE3 = """
          cifar10 cifar100 svhn  cinic10
rtk       95.9    85.6     97.0  90.6
teacher   96.2    86.4     97.3  90.7
none      95.3    84.4     96.3  89.9
"""

# github HobbitLong/RepDistiller README, CIFAR-100 top-1 of the last epoch (Tian et al. 2020,
# arXiv 1910.10699). AB and FT are there too; this project does not have them.
CRD_SAME = """
          wrn_40_2_wrn_16_2 wrn_40_2_wrn_40_1 r56_r20 r110_r20 r110_r32 r32x4_r8x4 vgg13_vgg8
teacher   75.61             75.61             72.34   74.31    74.31    79.42      74.64
none      73.26             71.98             69.06   69.06    71.14    72.50      70.36
kd        74.92             73.54             70.66   70.67    73.08    73.33      72.98
fitnet    73.58             72.24             69.21   68.99    71.06    73.50      71.02
at        74.08             72.77             70.55   70.22    72.31    73.44      71.43
sp        73.83             72.43             69.67   70.04    72.69    72.94      72.68
cc        73.56             72.21             69.63   69.48    71.48    72.97      70.71
vid       74.11             73.30             70.38   70.16    72.61    73.09      71.23
rkd       73.35             72.22             69.61   69.25    71.82    71.90      71.48
pkt       74.54             73.45             70.34   70.25    72.61    73.64      72.88
fsp       72.91             -                 69.95   70.11    71.89    72.62      70.23
nst       73.68             72.24             69.60   69.53    71.96    73.30      71.53
crd       75.48             74.14             71.16   71.46    73.48    75.51      73.94
"""
CRD_CROSS = """
        vgg13_mv2_half r50_mv2_half r50_vgg8 r32x4_shufflev1 r32x4_shufflev2 wrn_40_2_shufflev1
teacher 74.64          79.34        79.34    79.42           79.42           75.61
none    64.60          64.60        70.36    70.50           71.82           70.50
kd      67.37          67.35        73.81    74.07           74.45           74.83
fitnet  64.14          63.16        70.69    73.59           73.54           73.73
at      59.40          58.58        71.84    71.73           72.73           73.32
sp      66.30          68.08        73.34    73.48           74.56           74.52
cc      64.86          65.43        70.25    71.14           71.29           71.38
vid     65.56          67.57        70.30    73.38           73.40           73.61
rkd     64.52          64.43        71.50    72.28           73.21           72.21
pkt     67.13          66.52        73.01    74.10           74.69           73.89
nst     58.16          64.96        71.28    74.12           74.68           74.89
crd     69.73          69.11        74.30    75.11           75.65           76.05
"""
# The best epoch: DKD from github megvii-research/mdistiller README, ReviewKD from github
# DevPranjal/reproduction-review-kd README, for ResNet-50 from mdistiller issue 39.
LATER = {
    "dkd": """
    r56_r20 r110_r32 r32x4_r8x4 wrn_40_2_wrn_16_2 wrn_40_2_wrn_40_1 vgg13_vgg8 r50_mv2_half
dkd 71.97   74.11    76.32      76.23             74.81             74.68      70.35
""",
    "reviewkd": """
         r56_r20 r110_r32 r32x4_r8x4 wrn_40_2_wrn_16_2 wrn_40_2_wrn_40_1 r50_mv2_half
reviewkd 71.89   73.89    75.63      76.12             75.09             69.89
""",
}

# ImageNet top-1, each with its own source.
DIST = "github hunto/DIST_KD README"
MD = "github megvii-research/mdistiller README"
DP = "github DevPranjal/reproduction-review-kd README (ResNet-50: mdistiller issue 39)"
RV = "github dvlab-research/ReviewKD README"
TD = "github yoshitomo-matsubara/torchdistill configs/official/ilsvrc2012"
OFD = "github clovaai/overhaul-distillation README"
IMAGENET = {
    "r34_r18": {
        "teacher": (73.31, DIST), "none": (69.75, RV), "kd": (71.03, MD), "at": (70.90, TD),
        "crd": (70.93, TD), "afd": (71.38, "paperswithcode, Ji et al. 2021, arXiv 2102.02973"),
        "dkd": (71.70, MD), "reviewkd": (71.61, RV),
    },
    "r50_mv1": {
        "teacher": (76.16, OFD), "none": (68.87, OFD), "kd": (70.50, MD), "dkd": (72.05, MD),
        "reviewkd": (72.56, RV),
    },
    # DIST's recipe and its ResNet-50 (80.1): a stronger teacher and recipe than this project's.
    "r50_mv2": {"none": (73.6, DIST), "kd": (71.7, DIST)},
}  # fmt: skip


def grid(text: str) -> dict[tuple[str, str], float | None]:
    """{(name of the row, name of the column): number or None}."""
    header, *rows = [line.split() for line in text.strip().splitlines()]
    cells = {}
    for name, *values in rows:
        for column, value in zip(header, values, strict=True):
            cells[name, column] = None if value == "-" else float(value)
    return cells
