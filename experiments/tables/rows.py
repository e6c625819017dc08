"""The tables: one row per published cell, with the configuration that fills it.

A row defines the configuration behind a cell, what is measured, what was published, and where.
"""

from __future__ import annotations

import dataclasses

from experiments.tables import paper_numbers
from experiments.tables.paper_numbers import grid

RTK = "Yang et al. 2022, arXiv 2206.12788"
CRD = "github HobbitLong/RepDistiller README (arXiv 1910.10699)"
ATKD = "AT-KD, slides of this project: expectations, nobody has measured them"
TABLE1_METHODS = ("none", "kd", "fitnet", "at", "rkd", "crd", "afd", "rtk")
ATKD_METHODS = ("none", "kd", "at_kd", "atkd", "atkd_poster")
# Compared in one short table: the methods of RTK's Table 1 and those that it leaves out.
SHORT = (*TABLE1_METHODS, "sp", "vid", "nst", "pkt", "cc", "dkd", "reviewkd")
SHORT = (*SHORT, "at_kd", "atkd", "atkd_poster", "aft")
FEW_METHODS = (
    "none",
    "kd",
    "at_kd",
    "atkd",
    "fitnet",
    "fitnet_kd",
    "nst_kd",
    "aft",
    "dkd",
    "crd_kd",
)
FEW_IMAGES = (500, 2500, 5000, 25_000, 50_000)  # 1, 5, 10, 50 and 100 % of CIFAR-10
FEW_STEPS = (781, 3125, 12_500)  # 1, 4 and 16 epochs of all images
CONFIRMED = ("none", "kd", "at_kd", "atkd", "fitnet_kd")  # on other images and networks


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell.

    Attributes:
      config: configuration string, such as "cifar10:method=kd,pair=r56_r20".
      role: whose number it is: "student", or the "teacher" of that configuration.
      metric: "top1" in percent; "hard", "macro" or "micro", areas under the curve (roc.py), times
        100; "unseen", top-1 on other data with the same classes (measure.py); "teacher", top-1 of a
        published teacher, measured before it teaches.
      published: the printed number; None if there is none.
      source: of the number.
      epoch: which epoch's number it is: "last", "best" or "unstated".
      note: for the reader of the report.
    """

    config: str
    role: str = "student"
    metric: str = "top1"
    published: float | None = None
    source: str = ""
    epoch: str = "unstated"
    note: str = ""

    @property
    def dataset(self) -> str:
        return self.config.partition(":")[0]

    @property
    def options(self) -> dict[str, str]:
        """Those after the colon of the configuration string."""
        return dict(item.split("=") for item in self.config.partition(":")[2].split(","))

    @property
    def method(self) -> str:
        """As in configs/methods.py, or "teacher"."""
        return "teacher" if "teacher" in (self.role, self.metric) else self.options["method"]

    @property
    def pair(self) -> str:
        return self.options.get("pair", "")

    @property
    def setting(self) -> str:
        """What else its number depends on: how many images and steps, where that is chosen."""
        known = ((key, self.options.get(key)) for key in ("images", "steps"))
        return ", ".join(f"{int(value):,} {key}" for key, value in known if value)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper, or one of ours.

    Attributes:
      title: one line.
      rows: its cells.
      note: for the reader of the report, about all rows.
      figures: drawn of its jobs: "curves", "pairs", "images", "matrix", "roc", "maps".
    """

    title: str
    rows: tuple[Row, ...]
    note: str = ""
    figures: tuple[str, ...] = ()


def cell(
    dataset: str, pair: str, method: str, published: float | None = None, more: str = "", **rest
) -> Row:
    """A row.

    Args:
      method: may be "teacher".
      more: further options of the configuration, such as ",epochs=100".
    """
    role = "teacher" if method == "teacher" else "student"
    # KD's configuration stands for the teacher's: any with a teacher would do.
    options = f"method={'kd' if role == 'teacher' else method}" + (f",pair={pair}" if pair else "")
    return Row(f"{dataset}:{options}{more}", role, published=published, **rest)


def by_dataset(text: str, pair: str, **rest) -> list[Row]:
    """Rows of a grid whose columns are data sets."""
    return [cell(data, pair, method, v, **rest) for (method, data), v in grid(text).items()]


def by_pair(text: str, **rest) -> list[Row]:
    """Rows of a grid whose columns are pairs, on CIFAR-100; cells without a number are left out."""
    cells = grid(text).items()
    return [cell("cifar100", p, m, v, **rest) for (m, p), v in cells if v is not None]


def imagenet(pair: str, more: str = "", note: str = "") -> list[Row]:
    """Rows of published numbers on ImageNet; the teacher is torchvision's and only measured."""
    rows = []
    for method, (number, source) in paper_numbers.IMAGENET[pair].items():
        own = ("kd", "teacher") if method == "teacher" else (method, "top1")
        rest = dict(more=more, metric=own[1], source=source, note=note)
        rows.append(cell("imagenet", pair, own[0], number, **rest))
    return rows


def plain(dataset: str, pair: str, names: tuple[str, ...], **rest) -> list[Row]:
    """Rows without a published number."""
    return [cell(dataset, pair, name, **rest) for name in names]


def atkd(dataset: str) -> list[Row]:
    rows = plain(dataset, "r50_mv2", ATKD_METHODS, source=ATKD)
    if dataset == "cifar10":
        rows += plain(dataset, "r50_mv2", ("teacher",), source=ATKD)
        rows += plain(dataset, "r50_mv2", ATKD_METHODS, source=ATKD, metric="unseen")
    return rows


def few_images(
    methods: tuple[str, ...],
    images: tuple[int, ...],
    steps: tuple[int, ...] = FEW_STEPS[:1],
    more: str = "",
) -> tuple[Row, ...]:
    """Rows by number of steps, then of images, then method."""
    return tuple(
        cell("few_images", "", method, more=f"{more},images={count},steps={length}")
        for length in steps
        for count in images
        for method in methods
    )


def areas() -> list[Row]:
    """RTK's Table 3, whose areas are of hard predictions, and the areas of probabilities."""
    hard = by_dataset(paper_numbers.RTK_TABLE3, "r56_r20", source=f"{RTK}, Table 3", metric="hard")
    other = [dataclasses.replace(r, published=None, source="") for r in hard]
    return hard + [dataclasses.replace(r, metric=m) for m in ("macro", "micro") for r in other]


MATRIX_PAIRS = tuple(paper_numbers.RTK_TABLE2)
RTK_PAIRS = ("r56_r20", "r110_r20", "r110_r56", "wrn_40_2_wrn_16_2", "wrn_40_2_wrn_40_2",
             "wrn_40_2_r56", "r34_wrn_28_2")  # fmt: skip

TABLES: dict[str, Table] = {
    "digits": Table(
        "ResNet-20 → ResNet-8 on scikit-learn's digits",
        tuple(plain("digits", "", ("teacher", *SHORT))),
        "No paper prints it: the example that anyone can run, by `make tables`. 360 test images, so"
        " that one image is 0.28 points.",
        ("curves", "matrix", "maps"),
    ),
    "cifar10_small": Table(
        "ResNet-20 → ResNet-8 on CIFAR-10, published teacher",
        tuple(plain("cifar10", "r20_r8", SHORT, more=",teacher=akamaster")),
        "No paper prints it: what two CPU cores can run. Short training ranks methods by how fast"
        " they teach.",
        ("curves", "matrix", "maps"),
    ),
    "few_images": Table(
        "Few images, few steps: ResNet-20 → ResNet-8 on CIFAR-10, published teacher",
        few_images(FEW_METHODS, FEW_IMAGES, FEW_STEPS),
        "No paper prints it: which method, by the number of training images and of steps. A seed"
        " chooses the images, too.",
        ("images",),
    ),
    "few_images_cifar100": Table(
        "Few images, few steps: ResNet-56 → ResNet-20 on CIFAR-100, published teacher",
        few_images(CONFIRMED, (5000, 50_000), more=",data=cifar100,pair=r56_r20,teacher=chenyaofo"),
        "No paper prints it: whether what was chosen on CIFAR-10 holds for other images, with other"
        " networks.",
        ("images",),
    ),
    "few_images_mobile": Table(
        "Few images, few steps: ResNet-20 → MobileNetV2 x0.5 on CIFAR-10, published teacher",
        few_images(CONFIRMED, (5000,), more=",pair=r20_mv2_x0.5"),
        "No paper prints it: whether what was chosen for a ResNet-8 holds for a student of another"
        " kind than its teacher.",
    ),
    "cifar10_published": Table(
        "ResNet-56 → ResNet-20 on CIFAR-10, published teacher",
        tuple(plain("cifar10", "r56_r20", SHORT, more=",teacher=akamaster")),
        "RTK's Table 1 with a teacher that everybody has (93.39; the paper's has 94.08).",
    ),
    "rtk_table1": Table(
        "RTK, Table 1: ResNet-56 → ResNet-20",
        tuple(by_dataset(paper_numbers.RTK_TABLE1, "r56_r20", source=f"{RTK}, Table 1")),
        "The paper names neither seeds nor epoch nor the weights of the losses; it gives 0.85 M"
        " parameters for the teacher and 0.27 M for the student.",
        ("curves", "matrix", "maps"),
    ),
    "rtk_table2": Table(
        "RTK, Table 2: three pairs, four data sets",
        tuple(
            row
            for pair, text in paper_numbers.RTK_TABLE2.items()
            for row in by_dataset(text, pair, source=f"{RTK}, Table 2")
        ),
        "SVHN: the paper's schedule cannot be followed as printed (drops at epoch 150 of 50).",
    ),
    "rtk_table3": Table(
        "RTK, Table 3: average ROC in percent, ResNet-56 → ResNet-20",
        tuple(areas()),
        "The printed values fit areas from hard predictions to 0.55; areas from probabilities stand"
        " beside them.",
    ),
    "rtk_figure3": Table(
        "RTK, Figure 3: curves of KD and RTK, ResNet-56 → ResNet-20",
        tuple(r for d in ("cifar10", "cifar100") for r in plain(d, "r56_r20", ("kd", "rtk"))),
        figures=("curves",),
    ),
    "rtk_figure4": Table(
        "RTK, Figure 4: seven pairs on CIFAR-100",
        tuple(
            r for p in RTK_PAIRS for r in plain("cifar100", p, ("teacher", "none", "kd", "rtk"))
        ),
        "The paper prints a picture without numbers.",
        ("pairs",),
    ),
    "rtk_figure5": Table(
        "RTK, Figure 5: attention matrices of three pairs on CIFAR-100",
        tuple(r for p in MATRIX_PAIRS for r in plain("cifar100", p, ("rtk",))),
        figures=("matrix",),
    ),
    "rtk_figure6": Table(
        "RTK, Figure 6: ROC curves of RTK, ResNet-56 → ResNet-20",
        tuple(
            r
            for d in ("cifar10", "cifar100", "svhn", "cinic10")
            for r in plain(d, "r56_r20", ("rtk",), metric="micro")
        ),
        figures=("roc",),
    ),
    "atkd_cifar10": Table(
        "AT-KD's claims: ResNet-50 → MobileNetV2 on CIFAR-10", tuple(atkd("cifar10")),
        "The slides expect 2 to 5 points above KD, a small size, and better generalisation to data"
        " not trained on (unseen: CINIC-10; of its 90,000 test images 10,000 are training images of"
        " CIFAR-10 and 10,000 its test images).",
        ("curves", "maps"),
    ),
    "atkd_imagenet": Table(
        "AT-KD's claims: ResNet-50 → MobileNetV2 on ImageNet", tuple(atkd("imagenet")),
        "The slides expect 2 to 5 points above KD.",
    ),
    "crd_same": Table(
        "CRD benchmark on CIFAR-100, networks of one kind",
        tuple(by_pair(paper_numbers.CRD_SAME, source=CRD, epoch="last")),
        "FSP: the benchmark trains with it for 30 epochs first; here it is a term throughout. The"
        " benchmark's AB and FT are not in this project.",
    ),
    "crd_cross": Table(
        "CRD benchmark on CIFAR-100, networks of different kinds",
        tuple(by_pair(paper_numbers.CRD_CROSS, source=CRD, epoch="last")),
    ),
    "crd_later": Table(
        "DKD and ReviewKD on the CRD benchmark's pairs",
        tuple(
            row
            for method, source in (("dkd", paper_numbers.MD), ("reviewkd", paper_numbers.DP))
            for row in by_pair(paper_numbers.LATER[method], source=source, epoch="best")
        ),
        "ReviewKD's authors train with batch 128, rate 0.1 and Nesterov momentum; here every method"
        " has the benchmark's recipe.",
    ),
    "imagenet_r34_r18": Table(
        "ImageNet: ResNet-34 → ResNet-18", tuple(imagenet("r34_r18", ",epochs=100"))
    ),
    "imagenet_mv1": Table(
        "ImageNet: ResNet-50 → MobileNetV1", tuple(imagenet("r50_mv1", ",epochs=100"))
    ),
    "imagenet_mv2": Table(
        "ImageNet: ResNet-50 → MobileNetV2",
        tuple(imagenet("r50_mv2", "", "DIST's recipe and a ResNet-50 of 80.1, both stronger")),
    ),
}  # fmt: skip
