"""How far the dense CRF without a compiler is from pydensecrf, in one command: ``python -m benchmarks.crf``.

The four photographs of the lessons, in two sizes, with 2 and with 21 labels. Their scores are smooth noise that knows
nothing of the image, so that the kernels decide and not the scores; small photographs are repeated with other noise.
Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from wsss_nb.crf import CRFConfig, dense_crf
from wsss_nb.run.provenance import manifest
from wsss_nb.system.files import write_json
from wsss_nb.teach import PHOTOS, load_photo

__all__ = ["LABELS", "NOISES", "difference", "main", "smooth_scores", "table"]

LABELS = (2, 21)
NOISES = {120: 8, 375: 1}
"""Short side of the photographs in pixels -> how many draws of noise."""


def smooth_scores(labels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Scores (labels, height, width) of smooth noise with a period of about 25 pixels, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, labels, height // 25 + 2, width // 25 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return np.asarray((2 * smooth).softmax(0))


def difference(
    photograph: str, short_side: int, labels: int, seed: int = 0, config: CRFConfig | None = None
) -> dict[str, Any]:
    """Torch against pydensecrf on one photograph.

    Args:
        photograph: one of :data:`~wsss_nb.teach.PHOTOS`.
        short_side: of the photograph, in pixels.
        labels: number of labels.
        seed: of the noise.
        config: parameters of the CRF; the default ones if None.

    Returns:
        ``agree``, the share of pixels with the same label; ``moved``, the share of a pixel's probability that other
        labels got, 1/2 sum_k |q_k - q'_k|, mean over the pixels; ``largest`` difference of a probability; the seconds
        of processor time that both took on one thread; and what was compared.

    Raises:
        ImportError: pydensecrf2 is not installed.
    """
    image = load_photo(photograph, short_side).image
    height, width = image.shape[:2]
    scores = smooth_scores(labels, height, width, seed)
    settings = (config or CRFConfig()).model_dump(exclude={"backend"})

    def timed(infer: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
        begun = time.process_time()
        return infer(), time.process_time() - begun

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        native, native_seconds = timed(
            lambda: dense_crf(image, scores, **settings, backend="pydensecrf", isolated=False)
        )
        ours, seconds = timed(lambda: dense_crf(image, scores, **settings, backend="torch"))
    finally:
        torch.set_num_threads(threads)
    apart = abs(ours - native)
    return {
        "photograph": photograph,
        "height": height,
        "width": width,
        "labels": labels,
        "seed": seed,
        "iterations": settings["iterations"],
        "agree": float((ours.argmax(0) == native.argmax(0)).mean()),
        "moved": float(apart.sum(0).mean() / 2),
        "largest": float(apart.max()),
        "seconds": seconds,
        "native_seconds": native_seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| photograph | pixels | labels | noise | labels that agree | moved | largest | s | s, pydensecrf |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['photograph']} | {row['width']}x{row['height']} | {row['labels']} | {row['seed']} "
            f"| {100 * row['agree']:.1f} % | {row['moved']:.3f} | {row['largest']:.2f} | {row['seconds']:.2g} "
            f"| {row['native_seconds']:.2g} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare on all photographs; see the module's text.

    Returns:
        0; 2 if pydensecrf2 is not installed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crf", description=main.__doc__)
    parser.add_argument("--json", default="crf_difference.json", help="where to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = []
    try:
        for (short_side, noises), labels, name in product(NOISES.items(), LABELS, PHOTOS):
            rows += [difference(name, short_side, labels, seed) for seed in range(noises)]
    except ImportError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    write_json(options.json, {"rows": rows, "manifest": manifest()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
