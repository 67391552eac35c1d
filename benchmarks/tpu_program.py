"""Estimated cycles of a program compiled for TPUs, read from its text."""

import collections
import functools
import re

CATEGORIES = {
    "products": {"convolution", "dot"},
    "collectives": {"all-reduce", "all-reduce-start", "all-gather", "collective-permute"},
    "pooling": {"reduce-window", "select-and-scatter"},
    "reductions": {"reduce"},
    "random": {"xor", "shift-left", "rng-bit-generator"},
    "indexing": {"gather", "scatter", "dynamic-slice", "dynamic-update-slice", "sort"},
}
"""Category -> operations; a fusion belongs to the first category of which it has an operation."""
COPIES = {"copy", "transpose", "bitcast", "pad", "slice", "concatenate", "reshape", "parameter"}
COPIES |= {"convert", "broadcast", "constant", "tuple", "fusion", "reverse"}


class Program:
    """The computations in the text of a compiled program.

    Args:
        text: The text, from the method `as_text`.
    """

    def __init__(self, text: str):
        self.lines: dict[str, list[str]] = {}
        self.entry = ""
        name = None
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if header:
                name = header[2]
                self.lines[name] = []
                self.entry = name if header[1] else self.entry
            elif name is not None:
                self.lines[name].append(line)

    @functools.cache  # noqa: B019
    def cycles(self, computation: str | None = None) -> collections.Counter:
        """Cycles of each category; those of a loop's body count once per run."""
        total = collections.Counter()
        for line in self.lines[computation or self.entry]:
            own = re.search(r'"estimated_cycles":"(\d+)"', line)
            if own:
                total[self._category(line)] += int(own[1])
            if re.search(r" fusion\(", line):
                continue
            runs = self.trips(line) if " while(" in line else 1
            for called in self._called(line):
                for name, number in self.cycles(called).items():
                    total[name] += runs * number
        return total

    def trips(self, line: str) -> int:
        """Runs of a loop that counts from 0 to a constant; 1 for any other loop."""
        condition = re.search(r"condition=%?([\w.\-]+)", line)[1]
        lines = "\n".join(self.lines[condition])
        ends = re.findall(r"= s32\[\]\S* constant\((\d+)\)", lines)
        return int(ends[0]) if len(ends) == 1 and "direction=LT" in lines else 1

    def _called(self, line: str) -> list[str]:
        pattern = r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)"
        return [name for name in re.findall(pattern, line) if name in self.lines]

    def _category(self, line: str) -> str:
        operations = self._operations(line)
        for name, members in CATEGORIES.items():
            if operations & members:
                return name
        return "copies" if operations <= COPIES else "elementwise"

    def _operations(self, line: str) -> set[str]:
        """The operation of a line, and those of the fusion that it calls."""
        found = re.search(r" ([a-z][a-z\-]*)\(", line.partition(" = ")[2])
        operations = {found[1]} if found else set()
        if "fusion" in operations:
            for called in self._called(line):
                for inner in self.lines[called]:
                    operations |= self._operations(inner)
        return operations
