"""Pictures of images beside label maps: Figure 1, Figure 3 and the gallery, and which images they show."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage

from wsss_nb.counts import confusion_matrix, mean_iou
from wsss_nb.data.voc import colorize
from wsss_nb.run.results import CamResult, StageResult
from wsss_nb.run.run import Run
from wsss_nb.show.protocol import about, required
from wsss_nb.show.style import WIDTHS, Array, Arrays, begin, class_legend, legend_height, scalar
from wsss_nb.system.config import VOID
from wsss_nb.system.errors import InputError
from wsss_nb.variants import SEAM, STAGES, VARIANTS, lambda_variant

__all__ = ["MAX_IMAGES", "candidates", "collect_figure_1", "collect_figure_3", "collect_gallery", "compared_cams",
           "image_scores", "plot_panels", "typical"]  # fmt: skip

MAX_IMAGES = 400
"""Of larger splits this many evenly spaced images are looked at, so that drawing takes seconds."""

Entry = CamResult | StageResult
_Reader = Callable[[str], Array]  # a picture by its image's name
_GAP, _LABEL = 0.05, 0.19  # inches between panels, and for a row's class names
_ACTIVATIONS = "cividis"


def candidates(run: Run) -> list[str]:
    """Val images to choose from: all, or an evenly spaced subset of ``MAX_IMAGES``.

    Raises:
        NotInRun: the run names no val images.
    """
    names = required(run.val_names, "data.val_names: expected the val images' names")
    return [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), MAX_IMAGES)).round().astype(int)]


def image_scores(run: Run, entries: Sequence[Entry], names: Sequence[str]) -> Array:
    """mIoU of each image by each entry's label maps, (entries, images) in 0..1; NaN where all is void.

    Where all images are scored, their pixels must add up to the confusion matrix in results.json, so that
    another data set's masks, or label maps of another run, are found out.

    Raises:
        NotInRun: masks or label maps are not there.
        InputError: a label map's size is not its mask's, the scores are not those of these files, or the masks are
            void alone.
    """
    k = len(run.classes)
    confusion = np.zeros((len(entries), len(names), k, k), dtype=np.int64)
    for column, name in enumerate(names):
        target = run.dataset.mask(name)
        for row, entry in enumerate(entries):
            prediction = run.label_map(entry, name)
            if prediction.shape != target.shape:
                raise InputError(f"{entry.folder}/{name}.png: expected size {target.shape}, got {prediction.shape}")
            confusion[row, column] = confusion_matrix(prediction, target, k)
    for entry, total in zip(entries, confusion.sum(axis=1), strict=True):
        if sorted(names) == sorted(run.val_names) and not np.array_equal(total, entry.scores.confusion):
            masks = f"the masks that {entry.folder} was scored on"
            raise InputError(f"data_root: expected {masks}, got others ({run.dataset.root})")
    scores = mean_iou(confusion)
    if not np.isfinite(scores).any():
        raise InputError(f"{run.dataset.root}: expected val masks with labelled pixels, got void alone")
    return scores


def typical(run: Run, values: Array, names: Sequence[str], count: int) -> tuple[list[str], int]:
    """Names of ``count`` images whose values lie near the median, and from how many of the nearest.

    Among the nearest fifth (at least twice ``count``), nearest first, an image that shows a class not shown
    yet goes before the others; nothing else, in particular not the value's sign or size, plays a part.
    """
    order = np.argsort(np.abs(values - np.nanmedian(values)), kind="stable")[: np.isfinite(values).sum()]
    near = [names[i] for i in order[: max(2 * count, len(names) // 5)]]
    shown, fresh = {0, VOID}, []
    for name in near:
        found = set(np.unique(run.dataset.mask(name)).tolist())
        fresh += [name] if found - shown else []
        shown |= found
    return sorted(near, key=lambda name: name not in fresh)[:count], len(near)


def compared_cams(run: Run) -> dict[str, list[CamResult]]:
    """CAM trainings by title: lambda 0, then ours without and with FSL; none where none was run."""
    ours = run.cams(run.ours)
    lam = ours[0].lam if ours else 1.0
    points = [(0.0, False), *([] if lam is None else [(lam, False), (lam, True)])]
    found = {point: [cam for cam in run.cams(on_curve=True) if (cam.lam, cam.fsl) == point] for point in points}
    compared = {cams[0].title if cams else lambda_variant(*point).title: cams for point, cams in found.items()}
    return compared if lam is not None else {**compared, ours[0].title: ours}


def collect_figure_1(run: Run, names: Sequence[str] | None = None, rows: int = 4) -> Arrays:
    """Typical images, or those named, with the pseudo-labels of several CAMs (first seed)."""
    kinds = {**compared_cams(run), VARIANTS[SEAM].title: run.cams(SEAM)}
    columns = {title: cams[0] if cams else None for title, cams in kinds.items()}
    found = required([cam for cam in columns.values() if cam], "expected CAMs at lambda 0, of our method or of SEAM")
    plain, *_, ours, _ = columns.values()
    if plain and ours:
        end = ours.title if ours.lam is None else f"λ = {ours.lam:g} with FSL"
        names, chosen = _rows(run, names, rows, [plain, ours], f"gain in mIoU from λ = 0 to {end}")
    else:
        names, chosen = _rows(run, names, rows, [plain or ours or found[0]], "mIoU")
    return _panels(run, columns, names, chosen)


def collect_figure_3(run: Run, names: Sequence[str] | None = None, rows: int = 4) -> Arrays:
    """Typical images, or those named, from our activations to the final segmentation (first seed)."""
    cam = required(run.cams(run.ours), "expected CAMs of our method")[0]
    final = next(iter(run.stages("deeplab")), None)

    def activations(name: str) -> Array:
        classes, maps = run.activations(cam, name)
        return maps.max(axis=0) if classes.size else np.zeros(run.dataset.mask(name).shape, np.float32)

    of = "final segmentation" if final else "CAM pseudo-labels"
    names, chosen = _rows(run, names, rows, [final or cam], f"mIoU ({of})")
    columns: dict[str, Entry | _Reader] = {"foreground activations": activations, "CAM pseudo-labels": cam}
    return _panels(run, {**columns, "final segmentation": final}, names, chosen)


def collect_gallery(run: Run, rows: int = 2) -> Arrays:
    """The best, the median and the worst images of our last stage (first seed)."""
    last = next((found[0] for stage in reversed(STAGES) if (found := run.stages(stage))), None)
    entry, pool = required(last, "expected label maps of our method"), candidates(run)
    scores = image_scores(run, [entry], pool)[0]
    order = np.argsort(scores, kind="stable")[: np.isfinite(scores).sum()]  # void alone gives no score, and comes last
    rows = min(rows, max(1, len(order) // 3))
    middle = max(0, (len(order) - rows) // 2)
    groups = {"best": order[::-1][:rows], "median": order[middle : middle + rows], "worst": order[:rows]}
    names = [pool[i] for group in groups.values() for i in group]
    title = {"cam": "CAM pseudo-labels", "affinitynet": "AffinityNet pseudo-labels", "deeplab": "DeepLab"}[entry.stage]
    chosen = f"{title}: best, median and worst mIoU of {len(order)} images."
    return _panels(run, {"prediction": entry}, names, chosen, groups=[group for group in groups for _ in groups[group]])


def _rows(
    run: Run, names: Sequence[str] | None, rows: int, entries: Sequence[Entry], what: str
) -> tuple[Sequence[str], str]:
    """Images to show, typical by the mIoU of one entry or by the gain from one to another, and how they were chosen."""
    if names is not None:
        return names, "Rows: chosen by name."
    pool, gain = candidates(run), ""
    values, *others = image_scores(run, entries, pool)
    if others:
        values = others[0] - values
        gain = f" gain ({100 * np.nanmedian(values):+.1f} points)"
    names, near = typical(run, values, pool, rows)
    near_text = f"{near} of {len(pool)} images whose {what} is nearest to the median{gain}"
    return names, f"Rows: from the {near_text}, one per class first."


def _panels(
    run: Run, columns: Mapping[str, Entry | _Reader | None], names: Sequence[str], chosen: str, **more: Any
) -> Arrays:
    """The arrays of `plot_panels`: input, the columns (None: was not run) and ground truth of each image."""
    entries = [column for column in columns.values() if isinstance(column, Entry)]
    readers = [partial(run.label_map, column) if isinstance(column, Entry) else column for column in columns.values()]
    titles = ["input", *columns, "ground truth"]
    seeds = " and ".join(map(str, sorted({entry.seed for entry in entries})))
    chosen = f"{chosen} Seed {seeds}. White on black: mIoU of that image in percent."
    score = np.full((len(names), len(titles)), np.nan)
    more |= {"chosen": chosen, "classes": run.classes, "names": names, "columns": titles, "score": score}
    arrays = about(run, entries, **more)
    for row, name in enumerate(names):
        if run.val_names and name not in run.val_names:
            raise InputError(f"names: expected images of the val split, got {name!r}")
        mask = run.dataset.mask(name)
        for column, read in enumerate([run.dataset.image, *readers, run.dataset.mask]):
            if read is None:
                continue
            panel = arrays[f"panel_{row}_{column}"] = read(name)
            if panel.shape[:2] != mask.shape:
                raise InputError(f"{name}: expected pictures of size {mask.shape}, got {panel.shape[:2]}")
            if 0 < column < len(titles) - 1 and panel.dtype == np.uint8:
                score[row, column] = 100 * mean_iou(confusion_matrix(panel, mask, len(run.classes)))
    return arrays


def plot_panels(arrays: Arrays) -> Figure:
    """A row for each image, a column for each kind of picture; the groups of a gallery stand side by side."""
    classes, columns = arrays["classes"].tolist(), arrays["columns"].tolist()
    rows, width = len(arrays["names"]), WIDTHS[scalar(arrays, "width")]
    groups = arrays["groups"].tolist() if "groups" in arrays else []
    order = np.arange(rows)[:, None]  # index of each picture row by (line, block)
    if groups and width > WIDTHS["single"]:
        order = np.arange(rows).reshape(len(set(groups)), -1).T
    lines, across = order.shape
    cell = ((width - 0.05) / across - _LABEL) / len(columns) - _GAP
    shapes = np.array([[arrays[f"panel_{i}_0"].shape[:2] for i in line] for line in order])
    heights = [min(1.6, float((line[:, 0] / line[:, 1]).max())) * cell for line in shapes]
    flat = [panel for name, panel in arrays.items() if name.startswith("panel_") and panel.ndim == 2]
    labels = np.unique(np.concatenate([panel.ravel() for panel in flat if panel.dtype == np.uint8])).tolist()
    legend = legend_height(labels, classes, width - 0.05)
    scale = 0.34 if any(panel.dtype.kind == "f" for panel in flat) else 0.0
    lettered = columns if groups else [f"({chr(ord('a') + i)}) {title}" for i, title in enumerate(columns)]
    titles, title_size = _column_titles(lettered, cell)
    head = 0.06 + 0.018 * title_size * (1 + max(title.count("\n") for title in titles)) + 0.14 * (across > 1)
    height = head + sum(heights) + _GAP * lines + 0.06 + scale + legend
    figure, foot = begin(arrays, height, scalar(arrays, "chosen"), layout=False)
    total = figure.get_size_inches()[1]
    top = total - head
    names, size = _row_names(arrays, groups if across == 1 else [], min(heights))
    for line, indices in enumerate(order):
        for block, index in enumerate(indices):
            left = 0.03 + block * (width - 0.05) / across
            if across > 1 and line == 0:
                figure.text(left / width, (total - 0.04) / total, groups[index], va="top", fontweight="bold")
            for column, title in enumerate(titles):
                x = left + _LABEL + column * (cell + _GAP)
                axes = figure.add_axes((x / width, (top - heights[line]) / total, cell / width, heights[line] / total))
                _draw_panel(axes, arrays, int(index), column, heights[line], cell)
                if line == 0:
                    axes.set_title(title, fontsize=title_size, pad=2.5, linespacing=1.1)
                if column == 0:
                    axes.set_ylabel(names[index], fontsize=size, labelpad=1.5, linespacing=1.0)
        top -= heights[line] + _GAP
    class_legend(figure, labels, classes, bottom=foot + 0.01)
    if scale:
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
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, linewidth=0.4, color="0.3")
    panel = arrays.get(f"panel_{row}_{column}")
    if panel is None:
        axes.set_facecolor("0.95")
        axes.text(0.5, 0.5, "not run", ha="center", va="center", color="0.35", transform=axes.transAxes)
        return
    score = arrays["score"][row, column]
    if panel.dtype.kind == "f":
        axes.imshow(panel.astype(np.float32), vmin=0, vmax=1, cmap=_ACTIVATIONS)
    elif panel.ndim == 3:
        axes.imshow(panel, interpolation="nearest")
    else:
        axes.imshow(colorize(panel), interpolation="nearest")
        corner = (0.04 + 0.13 / height, 0.03 + 0.18 / width) if np.isfinite(score) else (0, 0)
        _number_regions(axes, panel, corner)
    if np.isfinite(score):
        box: dict[str, Any] = {"boxstyle": "round,pad=0.18", "facecolor": "black", "alpha": 0.65, "linewidth": 0}
        place: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
        axes.text(0.97, 0.04, f"{score:.0f}", fontsize=6, color="white", bbox=box, **place)


def _number_regions(axes: Axes, label_map: Array, score: tuple[float, float]) -> None:
    """The class number inside each class's thickest place, for readers who cannot tell the colours apart.

    A place under the score counts only if the class has no other; ``score`` is the share of height and width that it
    takes in the lower right corner.
    """
    height, width = label_map.shape
    free = np.ones(label_map.shape, dtype=bool)
    free[int(height * (1 - score[0])) :, int(width * (1 - score[1])) :] = False
    for label in np.setdiff1d(label_map, (0, VOID)):
        regions = ((label_map == label) & free, label_map == label)
        depths = (ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] for region in regions)
        depth = next((depth for depth in depths if depth.max() >= 0.035 * width), None)
        if depth is not None:
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            text = axes.text(column, row, str(label), color="white", fontsize=5, ha="center", va="center_baseline")
            text.set_path_effects([withStroke(linewidth=0.9, foreground="0.15")])


def _row_names(arrays: Arrays, groups: Sequence[str], height: float) -> tuple[list[str], float]:
    """The classes of each row's image, in at most two lines that fit ``height`` inches, and their size."""
    classes, last = arrays["classes"].tolist(), len(arrays["columns"]) - 1
    rows = []
    for row in range(len(arrays["names"])):
        found = [classes[label] for label in np.unique(arrays[f"panel_{row}_{last}"]) if 0 < label < len(classes)]
        rows.append("\n".join([*groups[row : row + 1], " + ".join(found)]))
    longest = max(1, *map(len, "\n".join(rows).split("\n")))
    if not groups and 0.62 * 6 * longest > 72 * height:  # does not fit at 6 points
        rows = [text.replace(" + ", " +\n", 1) for text in rows]
        longest = max(1, *map(len, "\n".join(rows).split("\n")))
    size = float(np.clip(72 * height / (0.62 * longest), 3.8, 5.5 if "\n" in "".join(rows) else 6.5))
    fit = int(72 * height / (0.62 * size))
    cut = [[line if len(line) <= fit else f"{line[: fit - 1]}…" for line in text.split("\n")] for text in rows]
    return ["\n".join(lines) for lines in cut], size


def _activation_scale(figure: Figure, bottom: float) -> None:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.1 / width, (bottom + 0.2) / height, 1.6 / width, 0.07 / height))
    colors = ScalarMappable(Normalize(0, 1), _ACTIVATIONS)
    bar = figure.colorbar(colors, cax=axes, orientation="horizontal", ticks=[0, 0.5, 1], format="%g")
    bar.outline.set_linewidth(0.4)
    axes.tick_params(labelsize=6, length=2, pad=1)
    size, stop = (5.5, "\n") if width <= WIDTHS["single"] else (6.0, " ")
    text = f"foreground activation,{stop}largest over the image's classes;{stop}the same scale in every picture"
    figure.text(1.82 / width, (bottom + 0.2) / height, text, fontsize=size, va="center", linespacing=1.1)
