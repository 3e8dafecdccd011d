"""What a life remembers, read off its retention matrix.

The retention matrix R has one row and one column per experience 0..C-1, experience 0 being birth:
`R_CC[i, j]` is the accuracy on experience j measured right after experience i was lived through (after the
night that follows it), as a fraction, NaN where it was not measured. The diagonal is what was just learnt,
the last row is what is left in the end, and what lies above the diagonal was answered before it was ever
taught. Of a life in progress pass the leading square `R_CC[:i + 1, :i + 1]`.

Every function averages over experiences with `weights_C`: None counts each experience equally, the numbers of
probes of each experience give the accuracy over all probes. Experiences of weight 0 do not take part. A
result is NaN where an entry that it needs was not measured or where no experience takes part: an average of
whatever happens to be there would compare different things. Arguments are never modified.
"""

import numpy as np


def final_average_accuracy(R_CC: np.ndarray, weights_C: np.ndarray | None = None) -> float:
    """Accuracy over everything ever lived, at the end: mean_j R[C-1, j].

    ACC of GEM (Lopez-Paz & Ranzato 2017, arXiv:1706.08840, Eq. 2).

    Args:
      R_CC: retention matrix, fractions.
      weights_C: weight of each experience, or None for equal weights.

    Returns:
      A fraction; birth is included.

    Raises:
      ValueError: if R is not square, or the weights do not fit, are negative or not finite.
    """
    R_CC, weights_C = _checked(R_CC, weights_C)
    return mean(R_CC[-1], weights_C)


def learning_accuracy(R_CC: np.ndarray, weights_C: np.ndarray | None = None) -> float:
    """Accuracy on each experience right after it: mean_j R[j, j] (LA; Riemer et al. 2019, arXiv:1810.11910).

    Args, Returns, Raises: as `final_average_accuracy`.
    """
    R_CC, weights_C = _checked(R_CC, weights_C)
    return mean(np.diagonal(R_CC), weights_C)


def backward_transfer(R_CC: np.ndarray, weights_C: np.ndarray | None = None) -> float:
    """What later experiences did to earlier ones: mean_{j<C-1} (R[C-1, j] - R[j, j]).

    BWT of GEM (Lopez-Paz & Ranzato 2017, arXiv:1706.08840, Eq. 3). Negative is forgetting. The last
    experience, which nothing follows, does not take part.

    Args, Raises: as `final_average_accuracy`.

    Returns:
      A difference of fractions in [-1, 1].
    """
    R_CC, weights_C = _checked(R_CC, weights_C)
    return mean((R_CC[-1] - np.diagonal(R_CC))[:-1], weights_C[:-1])


def forward_transfer(R_CC: np.ndarray, baseline_C: np.ndarray, weights_C: np.ndarray | None = None) -> float:
    """What earlier experiences did for one not yet lived: mean_{j>0} (R[j-1, j] - baseline[j]).

    FWT of GEM (Lopez-Paz & Ranzato 2017, arXiv:1706.08840, Eq. 4). Birth, which nothing precedes, does not
    take part.

    Args:
      R_CC: retention matrix, fractions; the diagonal above the main one must be measured.
      baseline_C: accuracy on each experience of a network at random initialisation; entry 0 is not used.
      weights_C: weight of each experience, or None for equal weights.

    Returns:
      A difference of fractions in [-1, 1].

    Raises:
      ValueError: as `final_average_accuracy`, and if the baseline does not have one entry per experience.
    """
    R_CC, weights_C = _checked(R_CC, weights_C)
    baseline_C = np.asarray(baseline_C, np.float64)
    if baseline_C.shape != R_CC.shape[:1]:
        raise ValueError(f"baseline has shape {baseline_C.shape}, the retention matrix {R_CC.shape}")
    return mean(np.diagonal(R_CC, 1) - baseline_C[1:], weights_C[1:])


def forgetting_from_first(R_CC: np.ndarray, weights_C: np.ndarray | None = None) -> float:
    """What was lost since it was learnt: mean_{j<C-1} (R[j, j] - R[C-1, j]), the negated backward transfer.

    This is "forgetting" in Avalanche (Lomonaco et al. 2021, arXiv:2104.00405).

    Args, Returns, Raises: as `backward_transfer`.
    """
    R_CC, weights_C = _checked(R_CC, weights_C)
    return mean((np.diagonal(R_CC) - R_CC[-1])[:-1], weights_C[:-1])


def forgetting_from_peak(R_CC: np.ndarray, weights_C: np.ndarray | None = None) -> float:
    """What was lost since it was known best: mean_{j<C-1} (max_{i<C-1} R[i, j] - R[C-1, j]).

    F of Chaudhry et al. 2018 (arXiv:1801.10112), never below `forgetting_from_first`; negative
    where the end is better than ever before. As there, the maximum covers rows before the experience too;
    rows that were not measured are passed over, but the diagonal must be (our reading).

    Args, Returns, Raises: as `backward_transfer`.
    """
    R_CC, weights_C = _checked(R_CC, weights_C)
    first_C = np.diagonal(R_CC)[:-1]
    peak_C = np.fmax.reduce(R_CC[:-1, :-1], axis=0, initial=-np.inf)
    return mean(np.where(np.isnan(first_C), np.nan, peak_C) - R_CC[-1, :-1], weights_C[:-1])


def _checked(R_CC, weights_C):
    R_CC = np.asarray(R_CC, np.float64)
    if R_CC.ndim != 2 or R_CC.shape[0] != R_CC.shape[1] or not R_CC.size:
        raise ValueError(
            f"the retention matrix has shape {R_CC.shape}; it needs one row and one column per experience, "
            "birth included"
        )
    weights_C = np.ones(len(R_CC)) if weights_C is None else np.asarray(weights_C, np.float64)
    if weights_C.shape != R_CC.shape[:1]:
        raise ValueError(f"weights have shape {weights_C.shape}, the retention matrix {R_CC.shape}")
    if not (np.isfinite(weights_C) & (weights_C >= 0)).all():
        raise ValueError(f"weights must be finite and 0 or more, got {weights_C.tolist()}")
    return R_CC, weights_C


def mean(values_C: np.ndarray, weights_C: np.ndarray) -> float:
    """Weighted mean of what has a weight, NaN where nothing has."""
    taken_C = weights_C > 0
    if not taken_C.any():
        return float("nan")
    return float(np.average(values_C[taken_C], weights=weights_C[taken_C]))
