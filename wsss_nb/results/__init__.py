"""A finished (or half-finished) run as typed objects: what figures and tables read.

Only ``results.json`` and the files it names inside the run folder are touched, so a run copied from another
machine reads the same. The images and masks are not part of a run; they come from the data set's folder.
"""

from wsss_nb.results.run import (
    RESULTS,
    RUN,
    SYNTHETIC_NOTE,
    NotHere,
    NotInRun,
    Run,
    find_run,
    load_run,
    read_results,
)
from wsss_nb.results.schema import (
    CamResult,
    Cost,
    DataInfo,
    Pretraining,
    Results,
    Scores,
    StageResult,
)

__all__ = [
    "RESULTS",
    "RUN",
    "SYNTHETIC_NOTE",
    "CamResult",
    "Cost",
    "DataInfo",
    "NotHere",
    "NotInRun",
    "Pretraining",
    "Results",
    "Run",
    "Scores",
    "StageResult",
    "find_run",
    "load_run",
    "read_results",
]
