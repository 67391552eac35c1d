"""Random weights and images for Inception v3, and the features that torch-fidelity gives them.

`python tests/inception_reference.py` writes the golden file; it needs PyTorch and torch-fidelity.
"""

import importlib
import importlib.util
import io
import sys
import types

import numpy as np
from truths import FIXTURES

PATH = FIXTURES / "inception.npz"
SIZES = [(32, 32), (200, 150), (299, 299)]


def random_state(shapes):
    """Random arrays of a state dict, {name: shape}; batch norms have statistics of their own."""
    # The numbers of RandomState never change with the version of NumPy.
    random = np.random.RandomState(0)
    state = {}
    for name, shape in shapes.items():
        draw = random.randn(*shape)
        if name.endswith(("conv.weight", "fc.weight")):
            value = draw * (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith("running_var"):
            value = np.exp(0.3 * draw)
        elif name.endswith("bn.weight"):
            value = 1 + 0.2 * draw
        else:
            value = 0.2 * draw
        state[name] = value.astype(np.float32)
    return state


def images(height, width):
    """uint8 [2, height, width, 3]: noise, and coloured waves."""
    noise = np.random.RandomState(height).randint(0, 256, (height, width, 3))
    y, x, channel = np.mgrid[:height, :width, :3]
    waves = 127.5 + 127.5 * np.sin(0.21 * y + (0.13 - 0.1 * channel) * x + channel)
    return np.stack([noise, waves]).astype(np.uint8)


def golden_inception():
    """({name: shape} of the reference's state dict, {size: (features, logits_unbiased)})."""
    with np.load(PATH) as file:
        arrays = dict(file)
    lengths = (arrays["shapes"] > 0).sum(axis=1)
    rows = zip(arrays["names"], arrays["shapes"], lengths, strict=True)
    shapes = {str(name): tuple(map(int, row[:length])) for name, row, length in rows}
    size = {f"{height}x{width}": (height, width) for height, width in SIZES}
    return shapes, {
        value: (arrays[f"features_{key}"], arrays[f"logits_{key}"]) for key, value in size.items()
    }


def fidelity_module(name):
    """A module of torch-fidelity that needs PyTorch only.

    The package itself imports torchvision, which the computations do not use.
    """
    if "torch_fidelity" not in sys.modules:
        package = types.ModuleType("torch_fidelity")
        spec = importlib.util.find_spec("torch_fidelity")
        package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
        # Its utilities read images and keep caches.
        utilities = types.ModuleType("torch_fidelity.utils")
        utilities.__getattr__ = lambda name: None
        sys.modules |= {"torch_fidelity": package, "torch_fidelity.utils": utilities}
    return importlib.import_module(f"torch_fidelity.{name}")


def fidelity_network(path=None):
    """torch-fidelity's extractor of features and unbiased logits, with the weights of a file.

    None keeps its initial weights.
    """
    extractor = fidelity_module("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    wanted = ["2048", "logits_unbiased"]
    if path is not None:
        return extractor("inception", wanted, feature_extractor_weights_path=str(path))

    class Untrained(extractor):
        def load_state_dict(self, state):
            del state

    return Untrained("inception", wanted, feature_extractor_weights_path=_nothing())


def _nothing():
    """A file in memory of an empty state dict."""
    import torch

    file = io.BytesIO()
    torch.save({}, file)
    file.seek(0)
    return file


def fidelity_outputs(network, pixels):
    """(features, logits_unbiased) of uint8 images [batch, height, width, 3]."""
    import torch

    found = network(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
    return tuple(value.numpy() for value in found)


def tensors(state):
    """A state dict of PyTorch."""
    import torch

    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def write():
    network = fidelity_network()
    shapes = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    network.__class__.__base__.load_state_dict(network, tensors(random_state(shapes)), False)
    table = [[*shape, *[0] * (4 - len(shape))] for shape in shapes.values()]
    arrays = {"names": np.array(list(shapes)), "shapes": np.array(table, np.int32)}
    for height, width in SIZES:
        features, logits = fidelity_outputs(network, images(height, width))
        arrays[f"features_{height}x{width}"] = features
        arrays[f"logits_{height}x{width}"] = logits
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    write()
