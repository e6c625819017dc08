"""Plots the attention of networks: one row per image, the networks side by side."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from atkd_jax.models.network import Network
from atkd_jax.nn import ops
from atkd_jax.runtime import hosts
from atkd_jax.training.loader import Loader
from atkd_jax.types import PyTree

Maps = dict[str, np.ndarray]
LONGEST = 20  # letters of a name, about the height of an image


PLOTTED = 6  # test images


def write(path: Path, loader: Loader, networks: dict[str, tuple[Network, PyTree]]) -> None:
    """Plots the attention of networks on a few test images.

    Drawing may fail for many reasons, and a run does not need its plot: failures are logged.

    Args:
      networks: title -> network and variables.

    Raises:
      OSError: the disk is full.
    """
    try:
        image, label = loader.sample(PLOTTED)
        maps = {
            title: attention(network, jax.device_get(variables), image)
            for title, (network, variables) in networks.items()
        }
        plot(path, image, [loader.info.class_names[k] for k in label], maps)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error).split())
        hosts.log_once(
            f"{path} could not be drawn ({type(error).__name__}: {reason}); all else is done"
        )


def attention(network: Network, variables: PyTree, image: np.ndarray) -> Maps:
    """Activation attention (Zagoruyko & Komodakis 2017, arXiv 1612.03928) of the last two stages.

    Args:
      image: [n, H, W, 3] uint8.

    Returns:
      {"8x8": [n, 8, 8], ...}, each map between 0 and 1.
    """

    @jax.jit
    def attention_maps(variables, image):
        feats = network.apply(variables, image.astype(jnp.float32) / 255.0).feats
        stages = sorted(key for key in feats if key.startswith("stage") and key[5:].isdigit())
        return [ops.attention_map(feats[stage]) for stage in stages[-2:]]

    maps = {}
    for a in map(np.asarray, attention_maps(variables, image)):
        low, high = a.min((1, 2), keepdims=True), a.max((1, 2), keepdims=True)
        maps[f"{a.shape[1]}x{a.shape[2]}"] = (a - low) / np.maximum(high - low, 1e-12)
    return maps


def plot(path: Path, image: np.ndarray, names: list[str], networks: dict[str, Maps]) -> None:
    """Draws the images, and beside each the maps of every network over the darkened image.

    Args:
      path: of the PNG.
      image: [n, H, W, 3] uint8.
      names: of the images' classes.
      networks: title -> what `attention` returned.
    """
    from matplotlib.figure import Figure

    text = {"fontsize": 9, "parse_math": False, "usetex": False}  # no math text between $
    names = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]
    columns = [(title, size, m) for title, maps in networks.items() for size, m in maps.items()]
    figure = Figure(figsize=(1.15 * (1 + len(columns)) + 0.5, 1.15 * len(image) + 0.7), dpi=120)
    grid = figure.subplots(len(image), 1 + len(columns), squeeze=False)
    for row, pixels in enumerate(image):
        panels = grid[row]
        panels[0].imshow(pixels, interpolation="nearest")
        panels[0].set_ylabel(names[row], **text)
        extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
        for panel, (_, _, maps) in zip(panels[1:], columns, strict=True):
            panel.imshow(pixels.mean(-1), cmap="gray", interpolation="nearest", extent=extent)
            panel.imshow(maps[row], cmap="inferno", alpha=0.75, vmin=0, vmax=1, extent=extent)
        for panel in panels:
            panel.set_xticks([])
            panel.set_yticks([])
    grid[0][0].set_title("input", **text)
    for panel, (title, size, _) in zip(grid[0][1:], columns, strict=True):
        panel.set_title(f"{title}\n{size}", **text)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # of letters that the font lacks, which become boxes
        warnings.simplefilter("ignore", UserWarning)
        figure.tight_layout(pad=0.4)
        figure.savefig(path)
