"""Work on a Ray cluster: actors, the jobs that they are given, and what is done if one is lost.

The driver gives jobs to actors and commits what comes back. Where actors run, whether they are
started again after a crash or on another node, and how many nodes there are is left to Ray: actors
have unlimited restarts, and those that do not fit wait for a late node, or make the autoscaler
start one. The job of a lost actor is given to another one.
"""

import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import ranks
from pipeline.errors import UserError
from pipeline.setting_checks import require_extra
from pipeline.stopping import StopRequest

MOST_LOSSES = 5  # actors lost over one job, before it is taken for the cause
CONNECT_S = 20.0
GROWTH_S = 10.0  # the size of the cluster is looked at so often
PATIENCE_S = 60.0  # until it is said that no actor has started
MOST_WORKERS = 100_000


class Actor:
    """What all actors have in common."""

    def ready(self) -> None:
        """Return when the actor is built, with its networks loaded."""


@dataclass(frozen=True)
class Demand:
    """Which cluster is used, and what the actors of a program need there."""

    address: str
    """'auto', host:port, ray://host:port, or 'local'"""
    workers: int = 0
    """number of actors; 0 means as many as fit"""
    cpus: int = 1
    """CPUs of an actor that has no GPU"""
    gpu: bool = True
    """whether an actor takes a GPU, if the cluster has any"""


@dataclass
class Job:
    """Arguments of one call of an actor; `key` tells it from others of the run."""

    key: int
    num_samples: int
    arguments: tuple[Any, ...]


class Cluster:
    """The actors of a run and the jobs that they have.

    Ray places and restarts actors. A job of a lost actor goes back into the queue, and not to the
    same actor: that may have to wait for a node which never comes.
    """

    def __init__(self, demand: Demand, actor: type[Actor], arguments: Sequence[Any]) -> None:
        import ray

        self.ray, self.demand = ray, demand
        self.actors: list[Any] = []
        self.calls: dict[Any, tuple[Any, Job | None]] = {}
        self.losses: Counter[int] = Counter()
        self.patience_ends: float | None = time.monotonic() + PATIENCE_S
        on_gpu = demand.gpu and bool(ray.cluster_resources().get("GPU"))
        self.kind = "GPU" if on_gpu else "CPU"
        self.share = 1 if on_gpu else demand.cpus
        needs = {"num_gpus": 1} if on_gpu else {"num_cpus": demand.cpus}
        placed = _in_folder(actor, os.getcwd())
        remote = ray.remote(max_restarts=-1, max_task_retries=0, **needs)(placed)
        shared = [ray.put(argument) for argument in arguments]
        self.start = lambda: remote.remote(*shared)

    def grow(self, num_jobs: int) -> None:
        """Start the actors that the settings or the size of the cluster ask for."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        places = sum(int(node.get(self.kind, 0)) // self.share for node in nodes)
        wanted = min(self.demand.workers or max(places, 1), num_jobs)
        while len(self.actors) < wanted:
            self.actors.append(self.start())
            self._await_ready(self.actors[-1])

    def _await_ready(self, actor: Any) -> None:
        self.calls[actor.ready.options(max_task_retries=-1).remote()] = (actor, None)

    def run(
        self,
        method: str,
        jobs: Sequence[Job],
        commit: Callable[[Job, Any], None],
        stop: StopRequest,
    ) -> None:
        """Have all jobs made and hand their results to `commit`, until a stop signal."""
        queue, idle, open_jobs = deque(jobs), deque[Any](), len(jobs)
        while open_jobs and not stop.signal_number:
            self.grow(open_jobs)
            while queue and idle:
                actor, next_job = idle.popleft(), queue.popleft()
                call = getattr(actor, method).remote(*next_job.arguments)
                self.calls[call] = (actor, next_job)
            done, _ = self.ray.wait(list(self.calls), timeout=GROWTH_S)
            if done:
                self.patience_ends = None
            self._note_wait()
            for call in done:
                actor, job = self.calls.pop(call)
                try:
                    result = self.ray.get(call)
                except self.ray.exceptions.RayTaskError as error:
                    raise self._cause(error) from None
                except self.ray.exceptions.RayError as error:  # actor, worker or node is lost
                    if job is None:  # `ready` is repeated by Ray unless the actor cannot start
                        raise self._cannot_start(error) from None
                    queue.append(job)
                    self._note_loss(job, error)
                    self._await_ready(actor)
                    continue
                if job is not None:
                    commit(job, result)
                    open_jobs -= 1
                idle.append(actor)

    def close(self) -> None:
        """End all actors."""
        for actor in self.actors:
            self.ray.kill(actor)

    def _note_wait(self) -> None:
        """Say once that no actor has started for a while."""
        if self.patience_ends is not None and time.monotonic() > self.patience_ends:
            self.patience_ends = None
            print(
                f"streetforge: no actor has started yet; each needs a node with {self.share} free "
                f"{self.kind}(s)",
                file=sys.stderr,
            )

    def _note_loss(self, job: Job, error: Exception) -> None:
        self.losses[job.key] += 1
        if self.losses[job.key] == MOST_LOSSES:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--ray {self.demand.address}: {MOST_LOSSES} actors were lost over the same "
                f"samples ({reason}); see Ray's logs, the memory of the nodes may not suffice; all "
                "finished samples are kept"
            )
        print("streetforge: an actor was lost; another one takes its samples", file=sys.stderr)

    def _cannot_start(self, error: Exception) -> UserError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return UserError(
            f"--ray {self.demand.address}: an actor cannot start ({lines[-1].strip()}); install "
            "this version on all nodes, with models and data at the same paths"
        )

    @staticmethod
    def _cause(error: Any) -> BaseException:
        """Return what an actor raised: an error of the user's as itself."""
        cause = getattr(error, "cause", None)
        return UserError(str(cause)) if isinstance(cause, UserError) else error


def _in_folder(actor: type[Actor], folder: str) -> type[Actor]:
    """Return the actor that works in the folder of the driver, where a node has it.

    Relative paths then mean the same as on the driver.
    """

    class Placed(actor):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            if os.path.isdir(folder):
                os.chdir(folder)
            super().__init__(*arguments)

    Placed.__name__ = actor.__name__  # what Ray calls it in its logs
    return Placed


def check_demand(demand: Demand) -> None:
    """Raise `UserError` for a number of actors or of processes that cannot be; nothing connects."""
    if not 0 <= demand.workers <= MOST_WORKERS:
        raise UserError(f"--ray-workers {demand.workers}: must be between 0 and {MOST_WORKERS}")
    if demand.workers and not demand.address:
        raise UserError("--ray-workers: is for --ray; add --ray ADDRESS or leave it out")
    if demand.address and (processes := ranks.world_size()) > 1:
        raise UserError(
            f"--ray {demand.address}: the cluster divides the work; start one process, not "
            f"{processes}"
        )


def connect(address: str) -> Any:
    """Connect to the cluster, or start one of this machine for the address `local`."""
    require_extra(f"--ray {address}", "ray", "ray")
    import ray

    try:
        host, _, port = address.rpartition("/")[2].rpartition(":")
        if host and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ValueError, OverflowError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--ray {address}: no cluster answers ({reason}); use 'local', 'auto' on a node of "
            "the cluster, host:port or ray://host:port"
        ) from None
    return ray


def run_jobs(
    demand: Demand,
    actor: type[Actor],
    arguments: Sequence[Any],
    method: str,
    jobs: Sequence[Job],
    commit: Callable[[Job, Any], None],
) -> int:
    """Build actors with `arguments` and have `method` of them do all jobs.

    `commit` receives each job and its result, in the order in which they end. Returns 0, or the
    exit code of a stop signal.
    """
    ray = connect(demand.address)
    try:
        with StopRequest().listening() as stop:
            cluster = Cluster(demand, actor, arguments)
            try:
                cluster.run(method, jobs, commit, stop)
            finally:
                cluster.close()
        return stop.exit_code
    finally:
        ray.shutdown()
