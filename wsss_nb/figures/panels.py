"""Pictures of images beside label maps: Figure 1, Figure 3 and the gallery."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage

from wsss_nb.data.palette import IGNORE, colorize
from wsss_nb.errors import InputError
from wsss_nb.figures.images import candidates, image_confusion, image_mious, image_scores, typical
from wsss_nb.figures.spec import FigureSpec
from wsss_nb.figures.style import (
    WIDTHS,
    Arrays,
    begin,
    class_legend,
    lambda_title,
    legend_height,
    our_lambda,
    scalar,
    shared_protocol,
)
from wsss_nb.results import CamResult, NotInRun, Run, StageResult

__all__ = ["figure_1", "figure_3", "gallery"]

_Column = tuple[str, Callable[[str], npt.NDArray[Any]] | None]  # title and reader, or None: was not run
_GAP, _LABEL = 0.05, 0.19  # inches between panels, and for a row's class names
_ACTIVATIONS = "cividis"


def _collect_figure_1(run: Run, names: Sequence[str] | None = None, rows: int = 4) -> Arrays:
    weight = our_lambda(run)
    kinds = {
        lambda_title(x, fsl, run.pooling): run.cams("sampling", x, fsl)
        for x, fsl in ((0.0, False), (weight, False), (weight, True))
    }
    ours = list(kinds)[-1]
    kinds["SEAM"] = run.cams("seam")
    entries = {title: _first_seed(found) for title, found in kinds.items()}
    run_entries = [entry for entry in entries.values() if entry is not None]
    if not run_entries:
        raise NotInRun(f"results.json: expected CAMs at lambda 0 or {weight:g}, or of SEAM, got none")
    chosen = "Rows: chosen by name."
    if names is None:
        pool = candidates(run)
        compared = [
            entry for entry in (next(iter(entries.values())), entries[ours]) if entry is not None
        ] or run_entries[:1]
        scores = image_scores(run, compared, pool)
        if len(compared) == 2:
            gain = scores[1] - scores[0]
            names, near = typical(run, gain, pool, rows)
            chosen = (
                f"Rows: from the {near} of {len(pool)} images whose gain in mIoU from λ = 0 to λ = {weight:g} "
                f"with FSL is nearest to the median gain ({100 * np.nanmedian(gain):+.1f} points), one per class "
                "first."
            )
        else:
            names, near = typical(run, scores[0], pool, rows)
            chosen = (
                f"Rows: from the {near} of {len(pool)} images whose mIoU is nearest to the median, "
                "one per class first."
            )
    columns: list[_Column] = [("input", run.dataset.image)]
    columns += [(title, _maps(run, entry)) for title, entry in entries.items()]
    columns.append(("ground truth", run.dataset.mask))
    return _panels(run, columns, names, chosen, run_entries)


def _collect_figure_3(run: Run, names: Sequence[str] | None = None, rows: int = 4) -> Arrays:
    cam, final = _our_cam(run), _first_seed(run.stages("deeplab"))
    if cam is None:
        raise NotInRun("results.json: expected CAMs of our method, got none")
    chosen = "Rows: chosen by name."
    if names is None:
        pool = candidates(run)
        scores = image_scores(run, [final or cam], pool)[0]
        names, near = typical(run, scores, pool, rows)
        of = "final segmentation" if final else "CAM pseudo-labels"
        chosen = (
            f"Rows: from the {near} of {len(pool)} images whose mIoU ({of}) is nearest to the median, "
            "one per class first."
        )

    def activations(name: str) -> npt.NDArray[Any]:
        classes, maps = run.activations(cam, name)
        return maps.max(axis=0) if classes.size else np.zeros(run.dataset.mask(name).shape, np.float32)

    columns: list[_Column] = [
        ("input", run.dataset.image),
        ("foreground activations", activations),
        ("CAM pseudo-labels", _maps(run, cam)),
        ("final segmentation", _maps(run, final)),
        ("ground truth", run.dataset.mask),
    ]
    entries: list[CamResult | StageResult] = [cam, final] if final else [cam]
    return _panels(run, columns, names, chosen, entries)


def _collect_gallery(run: Run, rows: int = 2) -> Arrays:
    entry = next(
        (found[0] for stage in ("deeplab", "affinitynet", "cam") if (found := run.stages(stage))), None
    )
    if entry is None:
        raise NotInRun("results.json: expected label maps of our method, got none")
    pool = candidates(run)
    scores = image_scores(run, [entry], pool)[0]
    order = np.argsort(scores, kind="stable")
    order = order[np.isfinite(scores[order])]  # a mask that is void alone gives no score
    rows = min(rows, max(1, len(order) // 3))
    middle = max(0, (len(order) - rows) // 2)
    groups = {
        "best": order[::-1][:rows],
        "median": order[middle : middle + rows],
        "worst": order[:rows],
    }
    names = [pool[i] for group in groups.values() for i in group]
    columns: list[_Column] = [
        ("input", run.dataset.image),
        ("prediction", _maps(run, entry)),
        ("ground truth", run.dataset.mask),
    ]
    title = {"cam": "CAM pseudo-labels", "affinitynet": "AffinityNet pseudo-labels", "deeplab": "DeepLab"}
    chosen = f"{title[entry.stage]}: best, median and worst mIoU of {len(order)} images."
    arrays = _panels(run, columns, names, chosen, [entry])
    arrays["groups"] = np.array([group for group, found in groups.items() for _ in found])
    return arrays


def _first_seed(entries: Sequence[Any]) -> Any:
    return min(entries, key=lambda entry: entry.seed) if entries else None


def _our_cam(run: Run) -> CamResult | None:
    variant = run.final_variant("ours")
    return _first_seed([cam for cam in run.results.cam if cam.variant == variant])


def _maps(run: Run, entry: CamResult | StageResult | None) -> Callable[[str], npt.NDArray[Any]] | None:
    return None if entry is None else lambda name: run.label_map(entry, name)


def _panels(
    run: Run,
    columns: Sequence[_Column],
    names: Sequence[str],
    chosen: str,
    entries: Sequence[CamResult | StageResult],
) -> Arrays:
    seeds = sorted({entry.seed for entry in entries})
    known = set(run.val_names)
    for name in names:
        if known and name not in known:
            raise InputError(f"names: expected images of the val split, got {name!r}")
    arrays: Arrays = {
        "note": np.array(run.note),
        "protocol": np.array(shared_protocol(entries, run)),
        "chosen": np.array(
            f"{chosen} Seed {' and '.join(map(str, seeds))}. White on black: mIoU of that image in percent."
        ),
        "classes": np.array(run.classes),
        "names": np.array(names),
        "columns": np.array([title for title, _ in columns]),
        "score": np.full((len(names), len(columns)), np.nan),
    }
    for row, name in enumerate(names):
        mask = run.dataset.mask(name)
        for column, (_, read) in enumerate(columns):
            if read is None:
                continue
            panel = read(name)
            if panel.shape[:2] != mask.shape:
                raise InputError(f"{name}: expected pictures of size {mask.shape}, got {panel.shape[:2]}")
            arrays[f"panel_{row}_{column}"] = panel
            if 0 < column < len(columns) - 1 and panel.dtype == np.uint8:
                confusion = image_confusion(panel, mask, len(run.classes))
                arrays["score"][row, column] = 100 * image_mious(confusion)
    return arrays


def _plot_panels(arrays: Arrays) -> Figure:
    classes, columns = arrays["classes"].tolist(), arrays["columns"].tolist()
    rows = len(arrays["names"])
    width = WIDTHS[scalar(arrays, "width")]
    groups = arrays["groups"].tolist() if "groups" in arrays else []
    order = np.arange(rows)[:, None]  # index of each picture row by (line, block)
    if groups and width > WIDTHS["single"]:  # the groups stand side by side
        order = np.arange(rows).reshape(len(set(groups)), -1).T
    lines, across = order.shape
    label = _LABEL
    cell = ((width - 0.05) / across - label) / len(columns) - _GAP
    shapes = np.array([[arrays[f"panel_{i}_0"].shape[:2] for i in line] for line in order])
    heights = [min(1.6, float((line[:, 0] / line[:, 1]).max())) * cell for line in shapes]
    labels = _labels_shown(arrays)
    legend = legend_height(labels, classes, width - 0.05)
    has_scale = any(arrays[name].dtype.kind == "f" for name in arrays if name.startswith("panel_"))
    scale = 0.34 if has_scale else 0.0
    titles = columns if groups else [f"({chr(ord('a') + i)}) {title}" for i, title in enumerate(columns)]
    titles, title_size = _column_titles(titles, cell)
    head = 0.06 + 0.018 * title_size * (1 + max(title.count("\n") for title in titles))
    head += 0.14 if across > 1 else 0.0
    height = head + sum(heights) + _GAP * lines + 0.06 + scale + legend
    figure, foot = begin(arrays, height, extra=scalar(arrays, "chosen"), layout=False)
    total = figure.get_size_inches()[1]
    top = total - head
    names, size = _row_names(arrays, groups if across == 1 else [], min(heights))
    for line, indices in enumerate(order):
        for block, index in enumerate(indices):
            left = 0.03 + block * (width - 0.05) / across
            if across > 1 and line == 0:
                figure.text(left / width, (total - 0.04) / total, groups[index], va="top", fontweight="bold")
            for column, title in enumerate(titles):
                x = left + label + column * (cell + _GAP)
                axes = figure.add_axes(
                    (x / width, (top - heights[line]) / total, cell / width, heights[line] / total)
                )
                _draw_panel(axes, arrays, int(index), column, heights[line], cell)
                if line == 0:
                    axes.set_title(title, fontsize=title_size, pad=2.5, linespacing=1.1)
                if column == 0:
                    axes.set_ylabel(names[index], fontsize=size, labelpad=1.5, linespacing=1.0)
        top -= heights[line] + _GAP
    class_legend(figure, labels, classes, bottom=foot + 0.01)
    if has_scale:
        _activation_scale(figure, foot + legend + 0.02)
    return figure


def _column_titles(columns: Sequence[str], cell: float) -> tuple[list[str], float]:
    """Titles that fit a panel of ``cell`` inches, over two or three lines if they must, and their size."""
    longest = max(map(len, columns))
    size = float(np.clip(72 * cell / (0.56 * longest), 5.5, 7.5))
    fit = max(8, int(72 * cell / (0.56 * size)))
    whole = [title.replace(" = ", "\xa0=\xa0").replace(" + ", "\xa0+\xa0") for title in columns]
    return ["\n".join(textwrap.wrap(title, fit, break_long_words=False)) for title in whole], size


def _draw_panel(axes: Axes, arrays: Arrays, row: int, column: int, height: float, width: float) -> None:
    """One picture of ``height`` x ``width`` inches."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set(visible=True, linewidth=0.4, color="0.3")
    panel = arrays.get(f"panel_{row}_{column}")
    if panel is None:
        axes.set_facecolor("0.95")
        axes.text(0.5, 0.5, "not run", ha="center", va="center", color="0.35", transform=axes.transAxes)
        return
    if panel.dtype.kind == "f":
        axes.imshow(panel.astype(np.float32), vmin=0, vmax=1, cmap=_ACTIVATIONS)
    else:
        axes.imshow(panel if panel.ndim == 3 else colorize(panel), interpolation="nearest")
    score = arrays["score"][row, column]
    if panel.dtype == np.uint8 and panel.ndim == 2:
        corner = (0.04 + 0.13 / height, 0.03 + 0.18 / width) if np.isfinite(score) else (0, 0)
        _number_regions(axes, panel, corner)
    if np.isfinite(score):
        axes.text(
            0.97,
            0.04,
            f"{score:.0f}",
            ha="right",
            va="bottom",
            fontsize=6,
            color="white",
            transform=axes.transAxes,
            bbox={"boxstyle": "round,pad=0.18", "facecolor": "black", "alpha": 0.65, "linewidth": 0},
        )


def _number_regions(axes: Axes, label_map: npt.NDArray[np.uint8], score: tuple[float, float]) -> None:
    """The class number inside each class's thickest place, for readers who cannot tell the colours apart.

    A place under the score counts only if the class has no other; ``score`` is the share of height and width that it
    takes in the lower right corner.
    """
    height, width = label_map.shape
    free = np.ones(label_map.shape, dtype=bool)
    free[int(height * (1 - score[0])) :, int(width * (1 - score[1])) :] = False
    for label in np.unique(label_map):
        if label in (0, IGNORE):
            continue
        depths = (
            ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
            for region in ((label_map == label) & free, label_map == label)
        )
        depth = next((depth for depth in depths if depth.max() >= 0.035 * width), None)
        if depth is None:
            continue
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        text = axes.text(
            column, row, str(label), color="white", fontsize=5, ha="center", va="center_baseline"
        )
        text.set_path_effects([withStroke(linewidth=0.9, foreground="0.15")])


def _row_names(arrays: Arrays, groups: Sequence[str], height: float) -> tuple[list[str], float]:
    """The classes of each row's image, in at most two lines that fit ``height`` inches, and their size."""
    classes = arrays["classes"]
    rows = []
    for row in range(len(arrays["names"])):
        mask = arrays[f"panel_{row}_{len(arrays['columns']) - 1}"]
        found = [str(classes[label]) for label in np.unique(mask) if 0 < label < len(classes)]
        rows.append([*groups[row : row + 1], " + ".join(found)])
    longest = max(1, *(len(line) for lines in rows for line in lines))
    if not groups and 0.62 * 6 * longest > 72 * height:  # does not fit at 6 points
        for lines in rows:
            first, plus, rest = lines[0].partition(" + ")
            lines[:] = [f"{first} +", rest] if plus else [first]
        longest = max(1, *(len(line) for lines in rows for line in lines))
    deep = max(map(len, rows)) > 1
    size = float(np.clip(72 * height / (0.62 * longest), 3.8, 5.5 if deep else 6.5))
    fit = int(72 * height / (0.62 * size))
    cut = [[line if len(line) <= fit else f"{line[: fit - 1]}…" for line in lines] for lines in rows]
    return ["\n".join(lines) for lines in cut], size


def _labels_shown(arrays: Arrays) -> list[int]:
    found: set[int] = set()
    for name, panel in arrays.items():
        if name.startswith("panel_") and panel.ndim == 2 and panel.dtype == np.uint8:
            found |= set(np.unique(panel).tolist())
    return sorted(found, key=lambda label: (label == IGNORE, label))


def _activation_scale(figure: Figure, bottom: float) -> None:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.1 / width, (bottom + 0.2) / height, 1.6 / width, 0.07 / height))
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _ACTIVATIONS),
        cax=axes,
        orientation="horizontal",
        ticks=[0, 0.5, 1],
        format="%g",
    )
    bar.outline.set_linewidth(0.4)
    axes.tick_params(labelsize=6, length=2, pad=1)
    text = "foreground activation, largest over the image's classes; the same scale in every picture"
    if width <= WIDTHS["single"]:
        text = text.replace(", ", ",\n", 1).replace("; ", ";\n")
    figure.text(
        1.82 / width,
        (bottom + 0.2) / height,
        text,
        fontsize=6 if width > WIDTHS["single"] else 5.5,
        va="center",
        linespacing=1.1,
    )


figure_1 = FigureSpec(
    "figure_1",
    "CAM comparison: input, pseudo-labels by max pooling, sampling, sampling + FSL and SEAM, ground truth",
    _collect_figure_1,
    _plot_panels,
    shows_images=True,
)
figure_3 = FigureSpec(
    "figure_3",
    "Qualitative results: input, foreground activations, CAM pseudo-labels, final segmentation, ground truth",
    _collect_figure_3,
    _plot_panels,
    shows_images=True,
)
gallery = FigureSpec(
    "gallery", "Best, median and worst val images", _collect_gallery, _plot_panels, shows_images=True
)
