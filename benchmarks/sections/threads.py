"""Layers and networks once more with two threads."""

from __future__ import annotations

from process import processors
from settings import Found, LeftOut, Settings
from tables import Table

from sections import layers, networks

THREADS = 2


def measure(settings: Settings) -> Found:
    """What `layers` and `networks` measure, on two processors."""
    if processors() < THREADS:
        raise LeftOut(f"{THREADS} threads need {THREADS} processors, and this process may use {processors()}")
    return {"layers": layers.measure(settings, THREADS), "networks": networks.measure(settings, THREADS)}


def tables(found: Found) -> list[Table]:
    """Both."""
    return [*layers.tables(found["layers"], THREADS), *networks.tables(found["networks"], THREADS)]
