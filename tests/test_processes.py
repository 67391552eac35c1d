"""Several processes that run one command together, over the loopback."""

import os
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from runs import ROOT, command_line, environment, load

from score_jax.cli.together import Group, bound_devices, group_of

FLAGS = [
    "--config=toy",
    "--config.training.num_steps=120",
    "--config.training.batch_size=32",
    "--config.training.steps_per_call=4",
    "--config.training.log_every=20",
    "--config.training.eval_every=60",
    "--config.training.eval_batches=1",
    "--config.training.checkpoint_every=20",
    "--config.training.keep_checkpoints=20",
    "--config.optim.warmup_steps=0",
    "--config.sampling.num_samples=20",
    "--config.sampling.batch_size=16",
    "--config.sampling.num_steps=2",
]


def launch(folder, *more):
    """Starts two processes with two devices each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    together = ["--devices=2", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    lines = [
        command_line(f"--workdir={folder}", *FLAGS, *more, *together, f"--process_id={i}")
        for i in (0, 1)
    ]
    return [
        subprocess.Popen(
            line, cwd=ROOT, env=environment(), text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        for line in lines
    ]


def ended(processes):
    """Exit codes and outputs of processes, which must end by themselves."""
    shown = [process.communicate(timeout=300)[0] for process in processes]
    assert not any("Traceback" in text for text in shown), shown
    return [process.returncode for process in processes], shown


def wait_for(path, processes):
    """Waits until a file is there."""
    for _ in range(12_000):
        if path.exists():
            return
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def test_two_processes_are_stopped_killed_and_go_on_like_one(tmp_path):
    """Train, stop one, kill one, start again, sample; then the same in one process."""
    folder = tmp_path / "two"
    processes = launch(folder, "--config.training.num_steps=100000")
    wait_for(folder / "checkpoints" / "20", processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, shown = ended(processes)
    assert codes == [143, 143], shown
    step = int(re.search(r"stopped at step (\d+) of 100000, which is saved", shown[0])[1])
    assert (folder / "checkpoints" / str(step)).is_dir()
    assert shown[1].count("stopped at step") == 0

    # A lost process ends the other one within a minute, with a sentence.
    following = folder / "checkpoints" / str(step // 20 * 20 + 20)
    processes = launch(folder, "--config.training.num_steps=100000")
    wait_for(following, processes)
    processes[0].kill()
    began = time.monotonic()
    codes, shown = ended(processes)
    assert time.monotonic() - began < 60
    assert codes == [-signal.SIGKILL, 1], shown
    assert "process 0 of 2 has ended, so process 1 ends as well: files written" in shown[1]


def test_two_processes_are_one_with_as_many_devices(tmp_path):
    folder, alone = tmp_path / "two", tmp_path / "one"
    processes = launch(folder)
    wait_for(folder / "checkpoints" / "40", processes)
    processes[1].kill()
    codes, shown = ended(processes)
    assert codes == [1, -signal.SIGKILL], shown
    processes = launch(folder)
    codes, shown = ended(processes)
    assert codes == [0, 0], shown
    assert re.search(r"continues from the checkpoint of step \d+", shown[0])
    assert "4 x cpu in 2 processes" in shown[0]
    assert "train" not in shown[1]

    line = command_line(f"--workdir={alone}", *FLAGS, "--devices=4")
    subprocess.run(line, cwd=ROOT, env=environment(), check=True, capture_output=True)
    ours, theirs = load(folder / "samples.npz"), load(alone / "samples.npz")
    np.testing.assert_allclose(ours["samples"], theirs["samples"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "environment", "group"),
    [
        ((None, None, None), {}, None),
        (("h:80", 2, 1), {}, Group("h:80", 2, 1)),
        (("h:80", 1, 0), {}, None),
        ((None, None, None), {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ((None, None, None), {"OMPI_COMM_WORLD_SIZE": "4"}, Group(None, 4, None)),
        (("none", None, None), {"OMPI_COMM_WORLD_SIZE": "4"}, None),
        (
            (None, None, None),
            {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_NUM_TASKS": "16"},
            Group(None, 16, None),
        ),
        ((None, None, None), {"SLURM_NTASKS": "16"}, None),  # a batch script, without srun
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "a,b"}, Group(None, None, None)),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (("auto", None, None), {}, Group(None, None, None)),
        (
            (None, None, None),
            {
                "JAX_COORDINATOR_ADDRESS": "h:80",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "0",
            },
            Group("h:80", 2, 0),
        ),
    ],
)
def test_flags_or_the_environment_describe_the_processes(flags, environment, group):
    assert group_of(*flags, environment) == group


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (("h", 2, 0), {}, "'h' must be HOST:PORT"),
        (("h:99999", 2, 0), {}, "'h:99999' must be HOST:PORT"),
        (("h:80", 2, 2), {}, "--process_id=2 must be from 0 to 1, as --num_processes=2"),
        (("h:80", None, 0), {}, r"needs --num_processes \(or JAX_NUM_PROCESSES, now missing\)"),
        (("h:80", 2, None), {"JAX_PROCESS_ID": "x"}, "or JAX_PROCESS_ID, now 'x'"),
        ((None, 2, 0), {}, "need --coordinator=HOST:PORT, the address of process 0"),
    ],
)
def test_an_incomplete_description_is_refused(flags, environment, words):
    with pytest.raises(ValueError, match=words):
        group_of(*flags, environment)


@pytest.mark.parametrize(
    ("tasks", "per_task", "visible", "devices"),
    [
        ("8(x2)", None, "0,1,2,3,4,5,6,7", None),  # JAX takes that of the task's number
        ("8(x2)", "1", "0", [0]),
        ("2(x2)", "4", "0,1,2,3", [0, 1, 2, 3]),
        ("1(x2)", None, "0,1,2,3", [0, 1, 2, 3]),
        ("1(x2)", None, None, None),
    ],
)
def test_gpus_that_slurm_has_bound_to_a_task_are_its_own(tasks, per_task, visible, devices):
    environment = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_TASKS_PER_NODE": tasks}
    environment |= {"SLURM_GPUS_PER_TASK": per_task} if per_task else {}
    environment |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    assert bound_devices(environment) == devices


def test_other_modes_run_in_a_single_process(tmp_path):
    line = command_line("--mode=report", f"--workdir={tmp_path}")
    several = environment() | {"OMPI_COMM_WORLD_SIZE": "2"}
    done = subprocess.run(line, cwd=ROOT, env=several, text=True, capture_output=True)
    assert done.returncode == 2
    words = "--mode=report runs in a single process, but the flags or the environment describe"
    assert words in done.stderr
    assert os.listdir(tmp_path) == []
