"""A few of the corruptions that benchmarks/corruptions.py counts."""

import importlib.util
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "corruptions.py"


def test_no_corruption_restores_another_state_silently(tmp_path):
    spec = importlib.util.spec_from_file_location("corruptions", BENCHMARK)
    corruptions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corruptions)
    shown = []
    number, counts = corruptions.counted(tmp_path, number=25, shown=shown.append)
    assert number == 25
    assert not shown
    assert counts["refused"] >= 1
    assert counts["passed over"] >= 1
    assert counts["SILENT"] == counts["TRACEBACK"] == 0
