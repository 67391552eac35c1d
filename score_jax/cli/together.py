"""Several processes that run one command together: as flags or a cluster describe them."""

from collections.abc import Mapping
from typing import NamedTuple


class Group(NamedTuple):
    """The place of this process among those that run together.

    Attributes:
        coordinator: Address of the first process as HOST:PORT; None to let JAX find it.
        number: Number of processes; None to let JAX find it.
        index: Number of this process; None to let JAX find it.
    """

    coordinator: str | None
    number: int | None
    index: int | None


def group_of(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> Group | None:
    """The group of processes that flags or the environment describe; None for a single process.

    Without flags, these are JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, and
    the variables of Open MPI, SLURM and TPU pods where they name two or more processes.

    Args:
        coordinator: Value of --coordinator: HOST:PORT, "auto" to let JAX search its environment,
            "none" for a single process; None if it is not given.
        num_processes: Value of --num_processes.
        process_id: Value of --process_id.
        environment: The environment variables.

    Raises:
        ValueError: If one of the three is missing or does not fit the others.
    """
    if coordinator in ("none", "auto") or (
        coordinator is None and "JAX_COORDINATOR_ADDRESS" not in environment
    ):
        if num_processes is not None or process_id is not None:
            raise ValueError(
                "--num_processes and --process_id need --coordinator=HOST:PORT, the address of "
                "process 0"
            )
        found = _in_cluster(environment)
        if coordinator == "auto":
            return found or Group(None, None, None)
        return found if coordinator is None else None

    # An explicit coordinator: flags win over variables.
    address = coordinator or environment["JAX_COORDINATOR_ADDRESS"]
    number = _number(num_processes, "num_processes", "JAX_NUM_PROCESSES", environment)
    index = _number(process_id, "process_id", "JAX_PROCESS_ID", environment)
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(
            f"the coordinator {address!r} must be HOST:PORT, the address of process 0: give "
            "--coordinator or JAX_COORDINATOR_ADDRESS so"
        )
    if not 0 <= index < number:
        raise ValueError(
            f"--process_id={index} must be from 0 to {number - 1}, as --num_processes={number}"
        )
    return Group(address, number, index) if number > 1 else None


def _in_cluster(environment: Mapping[str, str]) -> Group | None:
    """The group that the variables of a cluster describe; None for a single process."""
    number = _count(environment.get("OMPI_COMM_WORLD_SIZE"))
    if "SLURM_STEP_NODELIST" in environment:  # Set by srun, not in the batch script itself
        number = max(number, _count(environment.get("SLURM_STEP_NUM_TASKS")))
    if number > 1:
        return Group(None, number, None)
    return Group(None, None, None) if "," in environment.get("TPU_WORKER_HOSTNAMES", "") else None


def _count(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _number(given: int | None, flag: str, variable: str, environment: Mapping[str, str]) -> int:
    """The value of a flag, or else that of a variable."""
    if given is not None:
        return given
    text = environment.get(variable)
    if text is None or not (text.isascii() and text.isdigit()):
        shown = "missing" if text is None else f"{text!r}"
        raise ValueError(
            f"a coordinator needs --{flag} (or {variable}, now {shown}): give each process the "
            "number of all processes and its own number from 0"
        )
    return int(text)


def bound_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Numbers of the GPUs that SLURM has bound to this task alone; None to let JAX choose.

    JAX takes one GPU per task, with the task's number on its node, which is wrong for a task that
    sees its own GPUs only, or all of a node.
    """
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    bound = "SLURM_STEP_NODELIST" in environment and (
        alone or "SLURM_GPUS_PER_TASK" in environment
    )
    return list(range(len(visible))) if bound and visible else None
