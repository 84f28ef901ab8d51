"""What a GPU adds to the recipe for photographs: ``python -m benchmarks.ablation --data FOLDER --out DIR``.

Each row is the profile ``photos`` (lambda 1 with the feature-similarity loss) with something changed, trained with every
seed in a run folder of its own below ``--out`` and scored on the val split. What is finished is not repeated. Prints a
table with mean and deviation over the seeds and writes it with all settings to ``ablation.json``. Runs on a CPU as
well, for hours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss_nb.run.pipeline import train_cam
from wsss_nb.run.prepare import open_run
from wsss_nb.run.profiles import load_profile
from wsss_nb.run.provenance import manifest
from wsss_nb.system.errors import InputError
from wsss_nb.system.files import write_json

__all__ = ["ROWS", "ablate", "main", "table"]

STRIDE_8 = "backbone=efficientnet_lite0_stride8 cam.sigma=5"  # sigma counts pixels of the map
AUGMENTED = "cam.views.cached=false cam.views.long_side=[448,768] cam.views.jitter=[0.3,0.3,0.3,0.1] cam.views.crop=448"
ONE_EACH = {
    "trained": "cam.freeze=false",
    "siamese": "cam.siamese=true",
    "learned": "cam.learn_fsl=true",
    "draws100": "cam.num_samples=100",
}
ROWS: dict[str, str] = {
    "recipe": "",
    **ONE_EACH,
    "stride8_sigma5": STRIDE_8,
    "augmented448": AUGMENTED,
    "all": " ".join([STRIDE_8, AUGMENTED, *ONE_EACH.values()]),
}
"""Name -> fields that differ from the profile ``photos``, which has stride 16, views of 224 x 320 pixels resized once and
mirrored, early layers fixed, no siamese branch, fixed mu and sigma, one draw.

``trained`` (all convolutions), ``siamese``, ``learned`` and ``draws100`` change that one thing. ``stride8_sigma5`` halves
the stride and so doubles sigma in pixels of the map, the same distance in the image. ``augmented448`` is the paper's
augmentation: long side, colours and a crop of 448 pixels drawn anew in every epoch, several changes at once. ``all`` is all
of these together.
"""


def ablate(data: str, out: Path, rows: Sequence[str], seeds: Sequence[int], changes: str) -> list[dict[str, Any]]:
    """Train and score every row with every seed.

    Args:
        data: folder in VOC layout.
        out: below it each row has its run folder.
        rows: names of :data:`ROWS`.
        seeds: of the trainings.
        changes: fields of the profile that all rows have otherwise, as text.

    Returns:
        ``row``, ``changes``, ``seeds``, ``miou`` and ``contour_f`` (one value a seed), ``seconds`` (mean of a training).

    Raises:
        InputError: an unknown row, or as the profile and the data.
    """
    found = []
    for row in rows:
        if row not in ROWS:
            raise InputError(f"only: expected rows of {', '.join(ROWS)}, got {row!r}")
        own = {"seeds": list(seeds), "data": {"root": str(Path(data).resolve())}}
        run = open_run(load_profile("photos", changes, ROWS[row], own), out / row)
        results = [train_cam(run, "lambda1_fsl", seed) for seed in seeds]
        found.append(
            {
                "row": row,
                "changes": ROWS[row],
                "seeds": list(seeds),
                "miou": [result.scores.miou for result in results],
                "contour_f": [result.scores.contour_f for result in results],
                "seconds": statistics.mean(result.cost.seconds for result in results),
                "device": results[0].cost.device,
            }
        )
        print(table(found[-1:]).splitlines()[-1], flush=True)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table in percent; the deviation is that of the sample, none of a single seed."""

    def spread(values: Sequence[float]) -> str:
        percent = [100 * value for value in values]
        deviation = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
        return f"{statistics.mean(percent):.1f}{deviation}"

    lines = ["| training | seeds | mIoU | contour F | seconds |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        cells = [row["row"], len(row["seeds"]), spread(row["miou"]), spread(row["contour_f"])]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ablation; see the module's text.

    Returns:
        0; 2 if the input was wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=main.__doc__)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="data set in VOC layout")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--only", default=",".join(ROWS), metavar="ROW,...", help="default: %(default)s")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the profile for all rows, cam.precision=bfloat16 say",
    )
    options = parser.parse_args(arguments)
    changes = " ".join(options.changes)
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        parser.error(f"--seeds: expected numbers, got {error}")
    try:
        rows = ablate(options.data, options.out, options.only.split(","), seeds, changes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    write_json(options.out / "ablation.json", {"rows": rows, "set": changes, "manifest": manifest()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
