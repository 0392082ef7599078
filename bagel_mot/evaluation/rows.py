"""Rows of a report from the scores of items: shares of right answers and means, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bagel_mot.evaluation.base import SummaryRow
from bagel_mot.evaluation.statistics import mean_interval, wilson


def share_row(rights: Iterable[float | None], scale: float = 1.0) -> SummaryRow:
    """The share of right answers, times `scale`, with its Wilson interval.

    Args:
        rights: 1 or 0 for each item; None, which counts as no item, where there is no score.
        scale: 100 for a percentage.
    """
    known = [right for right in rights if right is not None]
    if not known:
        return SummaryRow(None, 0)
    low, high = wilson(round(sum(known)), len(known))
    return SummaryRow(scale * sum(known) / len(known), len(known), (scale * low, scale * high))


def mean_row(values: Iterable[float | None], scale: float = 1.0) -> SummaryRow:
    """The mean of the items' values, times `scale`, with its bootstrap interval.

    Args:
        values: a number for each item; None, which counts as no item, where there is no score.
        scale: 100 for a percentage.
    """
    known: Sequence[float] = [value * scale for value in values if value is not None]
    if not known:
        return SummaryRow(None, 0)
    return SummaryRow(sum(known) / len(known), len(known), mean_interval(known))
