"""The cases of benchmarks/speed.py in PyTorch.

Modes are "eager" (channels first), "channels_last" (eager, with the network and the images in
`torch.channels_last`) and "compiled" (channels first).
"""

import contextlib
import functools
from collections.abc import Sequence

import jax
import numpy as np
import pytorch
import torch
from speed_cases import LAYOUTS, Case, Chain, Network, Subject
from torch.utils.flop_counter import FlopCounterMode

import score_jax as sj


def torch_subjects(
    name: str,
    case: Case,
    network: Network,
    chain: Chain,
    device: str,
    modes: Sequence[str],
) -> tuple[dict[str, Subject], dict[str, float]]:
    """The functions to time in each mode, and a comparison of the networks.

    Args:
        name: Name of the case.
        case: The case.
        network: Its network.
        chain: The chain.
        device: "cpu" or "cuda".
        modes: Modes. "channels_last" is skipped for points, which have one layout.

    Returns:
        ("PyTorch MODE" -> functions, facts). The facts are the largest relative difference of the
        scores in the eager modes and, if "eager" is among the modes, the GFLOP of one call.

    Raises:
        SystemExit: If the scores differ by more than rounding errors.
    """
    subjects, differences, facts = {}, [], {}
    for mode in modes:
        if mode == "channels_last" and len(case.shape) == 1:
            continue

        # Training changes the parameters, so every mode has a network of its own.
        net = torch_network(case, network, device, mode)
        inputs = torch_inputs(network, device, mode)
        if mode in LAYOUTS:
            differences.append(check_scores(name, network, net, inputs, device))
        if mode == "eager":
            facts["forward_gflop"] = forward_flops(net, inputs) / 1e9
        subjects[f"PyTorch {mode}"] = torch_subject(
            case, net, inputs, network, chain, device, mode
        )
    if differences:
        facts["relative_difference"] = max(differences)
    return subjects, facts


def memory_format(mode: str) -> torch.memory_format:
    return torch.channels_last if mode == "channels_last" else torch.contiguous_format


def torch_network(case: Case, network: Network, device: str, mode: str):
    """The counterpart of a network in PyTorch, with the same parameters."""
    sigmas = network.sigmas.tolist()
    if case.network in ("ncsn", "ncsnv2"):
        width, channels = case.fields["width"], case.shape[-1]
        if case.network == "ncsn":
            net = pytorch.NCSN(width, channels, len(sigmas))
        else:
            net = pytorch.NCSNv2(width, channels, sigmas)
        state = sj.to_official(network.params)
        net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    elif case.network == "unet":
        model = network.model
        net = pytorch.UNet(
            sigmas,
            case.shape[0],
            model.width,
            model.heads,
            model.groups,
            model.data_mean,
            model.data_std,
            model.num_classes,
        )
        net.load(network.params)
    else:
        net = pytorch.MLP(sigmas)
        net.load(network.params)
    return net.to(device, memory_format=memory_format(mode))


def torch_inputs(network: Network, device: str, mode: str):
    """The inputs of a network as tensors, images as [batch, channels, height, width]."""
    x, *indices = (torch.tensor(part, device=device) for part in network.inputs)
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(mode))
    return (x, *(part.long() for part in indices))


def torch_scores(net, inputs) -> np.ndarray:
    """The scores of a PyTorch network, images as [batch, height, width, channels]."""
    with torch.no_grad():
        score = net(*inputs).cpu().numpy()
    return score.transpose(0, 2, 3, 1) if score.ndim == 4 else score


def torch_subject(
    case: Case, net, inputs, network: Network, chain: Chain, device: str, mode: str
) -> Subject:
    """The functions to time in PyTorch.

    Args:
        case: The case.
        net: The network in PyTorch.
        inputs: Its inputs.
        network: The network of score_jax; in bfloat16, that of PyTorch runs with autocast.
        chain: The chain.
        device: "cpu" or "cuda".
        mode: The mode.
    """
    x, level, *label = inputs
    sigmas = torch.tensor(network.sigmas, device=device)
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    run = torch.compile(net) if mode == "compiled" else net
    bf16 = getattr(network.model, "dtype", "float32") == "bfloat16"
    autocast = functools.partial(torch.autocast, device, dtype=torch.bfloat16, enabled=bf16)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def sample():
        y = torch.rand_like(x)
        visited = sigmas[: chain.num_levels].tolist()
        for i, sigma in enumerate(visited):
            step = chain.step_size * (sigma / visited[-1]) ** 2
            index = torch.full_like(level, i)
            for _ in range(chain.num_steps):
                with autocast():
                    score = run(y, index, *label)
                y = y + step * score.float() + (2 * step) ** 0.5 * torch.randn_like(y)
        wait()
        return y

    def train():
        for _ in range(case.steps):
            index = torch.randint(len(sigmas), level.shape, device=device)
            sigma = sigmas[index].reshape(-1, *(1,) * (x.ndim - 1))
            noise = torch.randn_like(x)
            with autocast():
                score = run(x + sigma * noise, index, *label)
            residual = sigma * score.float() + noise
            loss = 0.5 * residual.square().flatten(1).sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        wait()
        return loss

    return Subject(sample, train)


def forward_flops(net, inputs) -> float:
    """FLOPs of one call as counted by PyTorch: convolutions and matrix products only."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return float(counter.get_total_flops())


def check_scores(name: str, network: Network, net, inputs, device: str) -> float:
    """Relative difference of the scores in float32; exits if it is not a rounding error."""
    model = network.model
    if getattr(model, "dtype", "float32") != "float32":
        model = model.clone(dtype="float32")
    with full_precision():
        theirs = torch_scores(net, inputs)
        ours = np.asarray(jax.jit(model.apply)({"params": network.params}, *network.inputs))
    difference = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
    # Some algorithms of cuDNN round more often than a sum does.
    if difference > (1e-5 if device == "cpu" else 1e-3):
        raise SystemExit(f"{name}: the two networks differ by {difference:.1e}")
    return difference


@contextlib.contextmanager
def full_precision():
    """Keeps both libraries from rounding the factors of products to TF32, as they do on GPUs."""
    cudnn, convolutions = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
