"""The smallest set of nodes that still fails: delta debugging.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28 (2002), section 3, with
complements only: a graph that a chunk of nodes was taken from is still a graph, while single chunks seldom fail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection


def smallest(kept: Collection[int], fails: Callable[[frozenset[int]], bool], expired: Callable[[], bool]) -> set[int]:
    """A subset that fails and fails no more without any one of its members, unless time runs out.

    Args:
        kept: a set that fails.
        fails: whether a set does; it remembers what it was asked.
        expired: whether to stop.
    """
    left = sorted(kept)
    size = max(1, len(left) // 2)
    while True:
        shrunk = False
        at = 0
        while at < len(left) and not expired():
            rest = frozenset(left[:at] + left[at + size :])
            if rest and fails(rest):
                left, shrunk = sorted(rest), True
            else:
                at += size
        if expired() or (size == 1 and not shrunk):
            return set(left)
        size = max(1, min(size if shrunk and size == 1 else size // 2, len(left) // 2 or 1))
