"""Input against seed: do outputs of one study with several seeds vary less than outputs of several studies?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.eval.record import Metric
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.seeds import compare_jaccard, intraclass_correlation, jaccard

ICC, JACCARD = "input_icc", "label_jaccard"
OTHER_REAL: Final = "real, other studies"
_ONE: Final = "1 sample per study: expected at least 2 (--num-samples, --report-samples)"
_EQUAL: Final = "all outputs are the same"


def of_vectors(samples: Sequence[Array], bootstrap: Bootstrap, **options: Any) -> Metric:
    """Share of the variance of k samples' vectors (n, d) that lies between studies.

    Args:
        options: as for :meth:`xgem.eval.record.Metric.measured`.
    """
    if len(samples) < 2:
        return Metric.missing(ICC, _ONE, **options)
    found = intraclass_correlation(np.stack(samples), bootstrap)
    return (
        Metric.measured(ICC, found, **options) if np.isfinite(found.value) else Metric.missing(ICC, _EQUAL, **options)
    )


def of_labels(
    samples: Sequence[NDArray[np.bool_]], real: NDArray[np.bool_], bootstrap: Bootstrap, **options: Any
) -> Metric:
    """Jaccard index of the label sets (n, classes) of two samples of a study.

    The reference ``shuffled`` is that of one sample of two studies, ``real, other studies`` that of the real outputs of
    two studies, which says how much label sets have in common by their prevalence alone.
    """
    if len(samples) < 2:
        return Metric.missing(JACCARD, _ONE, **options)
    between_real = bootstrap.matched_and_shuffled(jaccard(real, real)).shuffled
    found = compare_jaccard(np.stack(samples), bootstrap)
    return Metric.measured(JACCARD, found, unpaired={OTHER_REAL: between_real}, **options)
