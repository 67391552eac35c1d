from pathlib import Path

import numpy as np
import pytest
from truths import NCSN_FIXTURES, golden, relative

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.torch
@pytest.mark.parametrize("name", [*NCSN_FIXTURES, "ncsnv2_cifar_ngf8"])
def test_the_baseline_of_the_benchmark_is_the_official_network(monkeypatch, name):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import pytorch

    g = golden(name)
    x = np.asarray(g["x"])
    state = {key: torch.tensor(np.asarray(value)) for key, value in g["param"].items()}
    if "sigmas" in state:
        net = pytorch.NCSNv2(8, x.shape[-1], torch.zeros_like(state["sigmas"]))
    else:
        net = pytorch.NCSN(8, x.shape[-1])
    net.load_state_dict(state)
    with torch.no_grad():
        score = net(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(np.asarray(g["labels"])).long()
        )
    assert relative(score.numpy().transpose(0, 2, 3, 1), g["score"]) < 1e-5


@pytest.mark.torch
def test_the_benchmark_measures_equal_networks_in_both_memory_layouts(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import speed_cases
    import speed_pytorch

    strides = []
    case = speed_cases.CASES["cifar10_v2"]
    case = case._replace(shape=(8, 8, 3), batch=2, fields={"width": 4}, steps=1)
    network = speed_cases.make_network(case)
    for layout, stride in (("eager", 8 * 8), ("channels_last", 1)):
        net = speed_pytorch.torch_network(case, network, "cpu", layout)
        net.normalizer.register_forward_hook(lambda *call: strides.append(call[-1].stride(1)))
        inputs = speed_pytorch.torch_inputs(network, "cpu", layout)
        assert inputs[0].stride(1) == stride
        assert net.res1[0].conv1.weight.stride(1) == (1 if stride == 1 else 9)
        difference = speed_pytorch.check_scores("cifar10_v2", network, net, inputs, "cpu")
        assert 0 < difference < 1e-5

        chain = speed_cases.Chain(1, 2, 1e-6)
        subject = speed_pytorch.torch_subject(case, net, inputs, network, chain, "cpu", layout)
        assert subject.sample().stride(1) == stride
        assert torch.isfinite(subject.train())
        assert set(strides) == {stride}
        strides.clear()

    # The check finds a difference of one parameter.
    with torch.no_grad():
        net.end_conv.bias[0] += 1e-2
    with pytest.raises(SystemExit, match="cifar10_v2: the two networks differ"):
        speed_pytorch.check_scores("cifar10_v2", network, net, inputs, "cpu")


def test_the_benchmark_compares_with_the_better_memory_layout(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import speed

    medians = {
        "sample, score_jax": 2.0,
        "sample, PyTorch eager": 5.0,
        "sample, PyTorch channels_last": 3.0,
        "train, score_jax": 4.0,
        "train, PyTorch eager": 2.0,
    }
    assert speed.ratios({name: {"median": value} for name, value in medians.items()}) == {
        "sample": {"layout": "channels_last", "ratio": 1.5},
        "train": {"layout": "eager", "ratio": 0.5},
    }
