"""What figures and tables say about their numbers: the protocol, the number of seeds, mean and deviation."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from wsss_nb.run.results import CamResult, StageResult
from wsss_nb.run.run import NotInRun, Run
from wsss_nb.variants import SEAM, STAGE_TITLES, STAGES

__all__ = ["about", "describe_protocol", "mean_and_spread", "required", "seeds_of", "seeds_text", "shared_protocol"]

Found = TypeVar("Found")
_SWITCHES: dict[str, tuple[str, str]] = {  # what a true and a false value are called
    "crf": ("CRF", "no CRF"),
    "flips": ("with flips", "no flips"),
    "image_labels": ("image labels used", "no image labels used"),
    "max_normalized": ("maps divided by their maximum", "maps not divided by their maximum"),
}
_PHRASES = {
    "split": "{} split", "images": "{} images", "background": "background rule {}", "void": "void {} in contour F",
    "crf": "CRF {}"
}  # fmt: skip
_UNTOLD = {"seed", "seeds", "stage"}  # counted, or named by the figure itself


def about(run: Run, entries: Sequence[CamResult | StageResult], **arrays: Any) -> dict[str, npt.NDArray[Any]]:
    """A figure's arrays: what its data and the protocol of its scores are, and ``arrays``."""
    said = {"note": run.note, "protocol": shared_protocol(entries, run) if entries else ""}
    return {name: np.asarray(value) for name, value in {**said, **arrays}.items()}


def required(found: Found | None, expected: str) -> Found:
    """What a figure or table is made of.

    Raises:
        NotInRun: there is none.
    """
    if not found:
        raise NotInRun(f"results.json: {expected}, got none")
    return found


def describe_protocol(protocol: dict[str, Any]) -> str:
    """One line of a score's protocol, keys in the order they were recorded.

    Example:
        >>> describe_protocol({"split": "val", "crf": False, "scales": [0.5, 1.0]})
        'val split, no CRF, scales 0.5 1'
    """
    words = []
    for key, value in protocol.items():
        if key in _SWITCHES and (isinstance(value, bool) or value is None):
            words.append(_SWITCHES[key][0 if value else 1])
        elif value is not None and value != "":
            text = "as background" if (key, value) == ("void", "background") else _plain(value)
            words.append(_PHRASES.get(key, key.replace("_", " ") + " {}").format(text))
    return ", ".join(words)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return " ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items()) + ")"
    return str(value)


def shared_protocol(entries: Sequence[CamResult | StageResult], run: Run) -> str:
    """The protocol of several scores in one line: what they share, then what differs between stages.

    Seeds are left out: figures and tables count the runs they really hold.

    Example:
        >>> shared_protocol([*run.stages("cam"), *run.stages("deeplab")], run)  # doctest: +SKIP
        'Protocol: val split, 150 images, scales 1; CAMs: no CRF; DeepLab-v1: CRF.'
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(entries, key=_place):  # whichever was scored first
        title = STAGE_TITLES[getattr(entry, "stage", "cam")].removeprefix("+ ")
        groups.setdefault(f"{title} of SEAM" if entry.variant == SEAM else title, []).append(entry.scores.protocol)
    everything = [protocol for group in groups.values() for protocol in group]
    keys = [key for key in dict.fromkeys(key for p in everything for key in p) if key not in _UNTOLD]
    common: dict[str, Any] = {}
    for key in keys:
        if len({_plain(protocol.get(key)) for protocol in everything}) == 1:
            common[key] = everything[0].get(key)
        if key == "split":
            common.setdefault("images", run.results.data.val)
    common["backbone"] = run.backbone
    differing: dict[str, list[str]] = {}  # what differs, and where
    for title, group in groups.items():
        own: dict[str, Any] = {}
        for key in keys:
            values = list(dict.fromkeys(_plain(protocol[key]) for protocol in group if key in protocol))
            if values and key not in common:
                own[key] = group[0].get(key) if len(values) == 1 else " or ".join(values)
        differing.setdefault(describe_protocol(own), []).append(title)
    parts = [f"{', '.join(titles)}: {text}" for text, titles in differing.items() if text]
    return f"Protocol: {'; '.join(filter(None, [describe_protocol(common), *parts]))}."


def _place(entry: CamResult | StageResult) -> tuple[object, ...]:
    return STAGES.index(getattr(entry, "stage", "cam")), entry.variant == SEAM, entry.variant, entry.seed


def mean_and_spread(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and sample standard deviation over the first axis, NaN left out.

    The deviation of fewer than two values is NaN, the mean of none as well.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where there is nothing to average
        return np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)


def seeds_text(counts: Collection[int]) -> str:
    """ "3 seeds", "1 seed", or "1 to 3 seeds" where the counts differ."""
    few, many = min(counts), max(counts)
    return f"{few} to {many} seeds" if few < many else f"{few} seed{'s' if few > 1 else ''}"


def seeds_of(counts: Mapping[str, int]) -> str:
    """How many seeds each series has: that of most of them, then the exceptions.

    Example:
        >>> seeds_of({"CAMs": 3, "SEAM": 3, "DeepLab": 1})
        '3 seeds (DeepLab: 1 seed)'
    """
    ranked = sorted(set(counts.values()), key=lambda n: (list(counts.values()).count(n), n), reverse=True)
    few = [f"{'; '.join(name for name in counts if counts[name] == n)}: {seeds_text([n])}" for n in ranked[1:]]
    return seeds_text(ranked[:1]) + (f" ({'; '.join(few)})" if few else "")
