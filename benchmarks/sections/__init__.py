"""What the benchmark measures: a section a module, each in processes of its own.

A section has `measure(settings)`, which gives plain JSON types, and `tables(found)`, which shows them: what is printed
and what is written to the docs are both made from the JSON alone.
"""

from __future__ import annotations

from types import ModuleType

from sections import bits, isas, layers, low_bit, memory, networks, start, threads

SECTIONS: dict[str, ModuleType] = {
    "layers": layers,
    "networks": networks,
    "threads": threads,
    "bits": bits,
    "low-bit": low_bit,
    "isas": isas,
    "start": start,
    "memory": memory,
}
