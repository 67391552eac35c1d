import importlib.util
from pathlib import Path

import numpy as np
import pytest
from truths import NCSN_FIXTURES, golden, relative

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.torch
@pytest.mark.parametrize("name", NCSN_FIXTURES)
def test_the_baseline_of_the_benchmark_is_the_official_network(name):
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("pytorch", BENCHMARKS / "pytorch.py")
    baseline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(baseline)
    g = golden(name)
    x = np.asarray(g["x"])
    net = baseline.NCSN(8, x.shape[-1])
    state = {key: torch.tensor(np.asarray(value)) for key, value in g["param"].items()}
    net.load_state_dict(state)
    with torch.no_grad():
        score = net(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(np.asarray(g["labels"])).long()
        )
    assert relative(score.numpy().transpose(0, 2, 3, 1), g["score"]) < 1e-5
