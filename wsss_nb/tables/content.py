"""The tables themselves: which numbers of a run stand where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from wsss_nb.figures import cost
from wsss_nb.figures.style import mean_and_spread, scalar, seeds_text, shared_protocol, variant_title
from wsss_nb.published import (
    METHODS,
    SOURCE,
    STAGE_TITLES,
    STAGES,
    TABLE_1,
    TABLE_1_PROTOCOL,
    TABLE_2,
    TABLE_2_PROTOCOL,
)
from wsss_nb.results import NotInRun, Run, StageResult
from wsss_nb.tables.layout import Column, Table

__all__ = ["table_1", "table_2", "table_cost", "table_sweep"]

_METHOD_NAMES = {"seam": "SEAM", "ours": "Ours"}


def table_1(run: Run) -> Table:
    """Table 1: SEAM and ours after each of the three stages, published and of this run.

    Example:
        >>> print(table_1(load_run("runs/quick")).to_markdown())  # doctest: +SKIP
    """
    rows: list[dict[str, Any]] = []
    used: list[StageResult] = []
    for stage in STAGES:
        for method in METHODS:
            entries = run.stages(stage, method)
            used += entries
            row: dict[str, Any] = {"stage": STAGE_TITLES[stage], "method": _METHOD_NAMES[method]}
            for metric in ("miou", "contour_f"):
                row |= _compared(
                    metric,
                    [getattr(e.scores, metric) for e in entries],
                    getattr(TABLE_1[stage, method], metric),
                )
            rows.append({**row, "seeds": len(entries) or np.nan})
    frame = pd.DataFrame(rows)
    columns = [Column("stage", "Stage", "text"), Column("method", "Method", "text")]
    for metric, group in (("miou", "Area mIoU"), ("contour_f", "Contour F")):
        columns += _compared_columns(metric, group)
    bold = {
        (first + int(values.argmax()), key)
        for first in range(0, len(frame), 2)
        for key in ("paper_miou", "run_miou", "paper_contour_f", "run_contour_f")
        if np.isfinite(values := frame[key].to_numpy(float)[first : first + 2]).all()
    }
    return Table(
        "table_1",
        _caption("Table 1. SEAM and ours at the three training stages, percent", run),
        frame,
        (*columns, Column("seeds", "seeds", "count")),
        _notes(run, TABLE_1_PROTOCOL, used, "This run: none of the stages was run."),
        frozenset(bold),
        run.note,
    )


def table_2(run: Run) -> Table:
    """Table 2: all 15 methods as published, and this run's final segmentation where it was run.

    The test split's labels are not public, so this run's test column stays empty.
    """
    rows: list[dict[str, Any]] = []
    used: list[StageResult] = []
    for published in TABLE_2:
        entries = run.stages("deeplab", published.method) if published.method else []
        used += entries
        compared = _compared("val", [entry.scores.miou for entry in entries], published.val)
        rows.append(
            {
                "method": f"{published.name} {published.cite}".strip(),
                "backbone": published.backbone,
                "paper_test": published.test,
                "run_backbone": run.backbone if entries else "",
                "run_test": np.nan,
                "seeds": len(entries) or np.nan,
                **compared,
            }
        )
    columns = (
        Column("method", "Method", "text"),
        Column("backbone", "Backbone", "text"),
        Column("paper_val", "val", group="Paper, VOC 2012"),
        Column("paper_test", "test", group="Paper, VOC 2012"),
        Column("run_backbone", "backbone", "text", "This run"),
        Column("run_val", "val", group="This run"),
        Column("run_val_sd", "s.d.", group="This run"),
        Column("difference_val", "difference", "signed", "This run"),
        Column("run_test", "test", group="This run"),
        Column("seeds", "seeds", "count", "This run"),
    )
    return Table(
        "table_2",
        _caption("Table 2. Area mIoU of weakly-supervised methods, percent", run),
        pd.DataFrame(rows),
        columns,
        _notes(run, TABLE_2_PROTOCOL, used, "This run: the final segmentation was not run."),
        note=run.note,
    )


def table_sweep(run: Run) -> Table:
    """The numbers of Figure 2: every CAM variant, mean and deviation over its seeds.

    Raises:
        NotInRun: no CAMs were made.
    """
    if not run.results.cam:
        raise NotInRun("results.json: cam: expected CAM variants, got none")
    order = ("average", "seam", "sampling")
    variants: dict[str, list[Any]] = {}
    for cam in sorted(run.results.cam, key=lambda c: (order.index(c.method), c.weight or 0.0, c.fsl, c.seed)):
        variants.setdefault(cam.variant, []).append(cam)
    rows = []
    for cams in variants.values():
        first = cams[0]
        row: dict[str, Any] = {
            "variant": variant_title(first, run.pooling),
            "lambda": np.nan if first.weight is None else first.weight,
            "fsl": "yes" if first.fsl else "no",
            "seeds": len(cams),
        }
        for metric in ("miou", "contour_f"):
            row |= _statistics(metric, [getattr(cam.scores, metric) for cam in cams])
        for part in ("head", "body", "background"):
            values = [(cam.parts or {}).get(part) for cam in cams]
            row[part] = float(mean_and_spread(np.array(values, dtype=float))[0])
        rows.append(row)
    columns = [
        Column("variant", "CAMs", "text"),
        Column("lambda", "λ", "share"),
        Column("fsl", "FSL", "text"),
        Column("run_miou", "mean", group="Area mIoU"),
        Column("run_miou_sd", "s.d.", group="Area mIoU"),
        Column("run_contour_f", "mean", group="Contour F"),
        Column("run_contour_f_sd", "s.d.", group="Contour F"),
    ]
    frame = pd.DataFrame(rows)
    if frame[["head", "body", "background"]].notna().to_numpy().any():
        columns += [Column(part, part, "share", "Share right") for part in ("head", "body", "background")]
    return Table(
        "table_sweep",
        _caption("CAM pseudo-labels by pooling, λ and feature similarity loss (FSL), percent", run),
        frame,
        (*columns, Column("seeds", "seeds", "count")),
        (shared_protocol(run.results.cam, run),),
        note=run.note,
    )


def table_cost(run: Run) -> Table:
    """What each step took: seconds and peak memory, mean over the runs of it.

    Raises:
        NotInRun: the run recorded no cost.
    """
    arrays = cost.collect(run)
    rows = []
    for step in dict.fromkeys(arrays["step"].tolist()):
        chosen = arrays["step"] == step
        seconds, spread = mean_and_spread(arrays["seconds"][chosen])
        memory, _ = mean_and_spread(arrays["peak_memory_mb"][chosen])
        rows.append(
            {
                "step": step,
                "seconds": float(seconds),
                "seconds_sd": float(spread),
                "peak_memory_mb": float(memory),
                "runs": int(chosen.sum()),
            }
        )
    return Table(
        "table_cost",
        _caption("Time and memory of each step", run),
        pd.DataFrame(rows),
        (
            Column("step", "Step", "text"),
            Column("seconds", "seconds"),
            Column("seconds_sd", "s.d."),
            Column("peak_memory_mb", "peak memory [MB]", "whole"),
            Column("runs", "runs", "count"),
        ),
        (scalar(arrays, "protocol"),) if scalar(arrays, "protocol") else (),
        note=run.note,
    )


def _statistics(metric: str, values: Sequence[float]) -> dict[str, float]:
    mean, spread = mean_and_spread(100 * np.array(values, dtype=float).reshape(-1))
    return {f"run_{metric}": float(mean), f"run_{metric}_sd": float(spread)}


def _compared(metric: str, values: Sequence[float], paper: float) -> dict[str, float]:
    found = _statistics(metric, values)
    return {f"paper_{metric}": paper, **found, f"difference_{metric}": found[f"run_{metric}"] - paper}


def _compared_columns(metric: str, group: str) -> list[Column]:
    return [
        Column(f"paper_{metric}", "paper", group=group),
        Column(f"run_{metric}", "this run", group=group),
        Column(f"run_{metric}_sd", "s.d.", group=group),
        Column(f"difference_{metric}", "difference", "signed", group),
    ]


def _caption(text: str, run: Run) -> str:
    return f"{text}. This run: {run.note}." if run.note else f"{text}."


def _notes(run: Run, paper: str, used: Sequence[StageResult], missing: str) -> tuple[str, ...]:
    notes = [f"Paper: {SOURCE}. {paper[0].upper()}{paper[1:]}."]
    if run.note:
        notes.append(
            f"This run: {run.note}. The difference is this run minus the paper on different data, so it does "
            "not say how well the paper's numbers are reproduced."
        )
    if not used:
        return (*notes, missing)
    seeds: dict[tuple[str, str], int] = {}
    for entry in used:
        key = (entry.stage, entry.method)
        seeds[key] = seeds.get(key, 0) + 1
    many = "mean and s.d. over " if max(seeds.values()) > 1 else ""
    notes.append(f"This run: {many}{seeds_text(seeds.values())}; an empty cell was not run.")
    return (*notes, shared_protocol(used, run))
