"""Several processes that run one command together, each with the devices of its host.

`jax.distributed` connects them. A process that dies leaves the others waiting in a collective, on
CPUs and GPUs for minutes or for ever. So each process also keeps a TCP connection to the first
one, which the system closes when a process dies, and ends when another one has ended too early.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from score_jax import progress
from score_jax.cli import workdir
from score_jax.cli.together import Group, bound_devices

EXIT_CODE_LOST = 1
START_SECONDS = 300
"""Longest time to wait until all processes have started."""
CONNECT_SECONDS = 5
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""The system asks the other host for a sign of life and, within 30 seconds, finds it gone."""
HEARTBEAT_SECONDS = 30
"""Time after which JAX itself aborts processes of which another one is silent."""
GRACE_SECONDS = 2
"""Time for this process to report an error of its own, before it ends because of another one."""
FAREWELL = b"!"
TOKEN_BYTES, INDEX_BYTES = 32, 4
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


def join(group: Group) -> None:
    """Connects this process to the others, before JAX initialises its devices.

    Raises:
        ValueError: If the processes do not find each other.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM over.
    jax.config.update("jax_enable_preemption_service", False)
    on_loopback = group.coordinator and group.coordinator.rpartition(":")[0] in LOOPBACK
    try:
        jax.distributed.initialize(
            coordinator_address=group.coordinator,
            num_processes=group.number,
            process_id=group.index,
            local_device_ids=bound_devices(os.environ),
            coordinator_bind_address=group.coordinator if on_loopback else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            # Process 0 may still write files when the others are done.
            shutdown_timeout_seconds=3600,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        where = group.coordinator or "found by JAX"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"the processes did not find each other (coordinator {where}: {reason}): start all of "
            "them, with an address of process 0 that all can reach; --coordinator=none runs a "
            "single process"
        ) from error


class Watch:
    """Connections among the processes by which each notices that another has ended.

    Args:
        coordinator: Address of process 0 if it is known.
    """

    def __init__(self, coordinator: str | None):
        self._index, self._number = jax.process_index(), jax.process_count()
        self._sockets: list[socket.socket] = []
        host = coordinator.rpartition(":")[0] if coordinator else ""
        token = secrets.token_bytes(TOKEN_BYTES)

        # Process 0 listens at a free port; its addresses and a secret reach the others by JAX.
        if self._index == 0:
            server = socket.create_server(("127.0.0.1" if host in LOOPBACK else "", 0))
            port = server.getsockname()[1]
            _broadcast(" ".join([str(port), token.hex(), *_addresses(host)]))
            threading.Thread(target=self._accept, args=(server, token), daemon=True).start()
            return
        port, secret, *addresses = _broadcast("").split()
        connection = _connected(addresses, int(port))
        if connection is None:
            print(
                f"score-jax: process {self._index} cannot connect to process 0 at "
                f"{', '.join(addresses)}: the loss of a process will be noticed later",
                file=sys.stderr,
            )
            return
        connection.sendall(bytes.fromhex(secret) + self._index.to_bytes(INDEX_BYTES, "big"))
        self._start(connection, 0)

    def leave(self) -> None:
        """Lets the others know that this process has done its part."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # It may have gone already.
                connection.sendall(FAREWELL)

    def _accept(self, server: socket.socket, token: bytes) -> None:
        with server:
            while len(self._sockets) < self._number - 1:
                connection, _ = server.accept()
                connection.settimeout(CONNECT_SECONDS)
                try:
                    greeting = connection.recv(TOKEN_BYTES + INDEX_BYTES, socket.MSG_WAITALL)
                except OSError:
                    greeting = b""
                if secrets.compare_digest(greeting[:TOKEN_BYTES], token):
                    self._start(connection, int.from_bytes(greeting[TOKEN_BYTES:], "big"))
                else:
                    connection.close()  # A stranger

    def _start(self, connection: socket.socket, other: int) -> None:
        connection.settimeout(None)
        _keep_alive(connection)
        self._sockets.append(connection)
        threading.Thread(target=self._watch, args=(connection, other), daemon=True).start()

    def _watch(self, connection: socket.socket, other: int) -> None:
        """Waits until another process leaves, or its connection breaks."""
        try:
            received = connection.recv(len(FAREWELL))
        except OSError:
            received = b""
        if received != FAREWELL:
            self._end(other)

    def _end(self, other: int) -> None:
        """Ends this process with one sentence, since no collective can be completed any more."""
        if other != 0:  # JAX itself aborts processes soon after process 0 has gone.
            time.sleep(GRACE_SECONDS)
        os.write(
            2,
            f"score-jax: process {other} of {self._number} has ended, so process {self._index} "
            "ends as well: files written so far are kept, and the same command in all processes "
            "continues from the newest checkpoint\n".encode(),
        )
        workdir.remove_unfinished()
        os._exit(EXIT_CODE_LOST)


def _addresses(host: str) -> list[str]:
    """Addresses under which others may reach this process."""
    found = [host] if host else []
    if host in LOOPBACK:
        return found
    name = socket.gethostname()
    try:
        found += [entry[4][0] for entry in socket.getaddrinfo(name, None, socket.AF_INET)]
    except OSError:
        found.append(name)
    return list(dict.fromkeys(found))


def _connected(addresses: list[str], port: int) -> socket.socket | None:
    """A connection to the first address that answers; None if none does."""
    for address in addresses:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), timeout=CONNECT_SECONDS)
    return None


def _keep_alive(connection: socket.socket) -> None:
    """Lets the system, which needs no Python thread for it, notice that the other host is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _broadcast(text: str) -> str:
    """The text of process 0, up to 1000 bytes, in all processes."""
    row = np.zeros(1000, np.uint8)
    content = np.frombuffer(text.encode()[:1000], np.uint8)
    row[: len(content)] = content
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(row))).rstrip(b"\0").decode()


def leave_writing_to_first() -> None:
    """Silences the output of all processes but the first, and lets these write no files."""
    if jax.process_index():
        progress.silence()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
        workdir.write_nothing()


_watches: list[Watch] = []


def watch(group: Group) -> None:
    """Watches the other processes until `part`; lets the first one alone write and print."""
    _watches.append(Watch(group.coordinator))
    leave_writing_to_first()


def wait_for_end() -> None:
    """Gives the watch the time to notice that another process has ended, and to end this one."""
    if _watches:
        time.sleep(HEARTBEAT_SECONDS)


def part(exit_code: int) -> None:
    """Ends the common work: with the others, or at once after an error.

    Args:
        exit_code: Exit code of this process. From 128 on it stands for a signal, at which all
            processes stop.
    """
    if not jax.distributed.is_initialized():
        return
    if _watches and (exit_code == 0 or exit_code >= 128):
        _watches.pop().leave()
        jax.distributed.shutdown()  # Waits for the others.
        return
    # Waiting for processes that wait for this one would take for ever. But all may have found the
    # same error, and report it.
    sys.stderr.flush()
    time.sleep(GRACE_SECONDS)
    workdir.remove_unfinished()
    os._exit(exit_code)
