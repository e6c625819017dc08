"""Published and measured, side by side: writes experiments/REPORT.md and experiments/report.html.

    python -m experiments.report [--workdir=runs/tables] [--weights=FOLDER] [--out=FOLDER]

Every number comes from a line in experiments/results/ or is marked as an estimate from such lines.
Attention maps are drawn from the finished jobs in WORKDIR; where there are none, an older picture
is kept.
"""

from atkd_jax.command_line import entry_point
from experiments.report.generate import main

if __name__ == "__main__":
    with entry_point("stopped"):
        main(__doc__)
