"""Many resumable runs at once, on one machine or on a cluster, through Python's `Executor` interface.

A task is a plain function that looks after itself: it does nothing where its result stands, goes on from its own
checkpoint, and saves before it stops. So a worker may die at any moment: its task is simply handed out again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol

from torchdfa.errors import ConversionError, RunError, UsageError
from torchdfa.train.stop import Stopped, StopSignals, asked, serve

TRIES = 3  # a task whose worker died so often is given up
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_CONNECT = 10
SECONDS_OF_GRACE = 60  # for the workers of a cluster to save and answer, after the end of the time
# Training uses the process's random numbers and thread count: two tasks in one process would disturb each other.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Task:
    """One run. `function(*arguments, deadline=...)` must be importable where it runs; `deadline` is in Unix time."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its value, or why there is none; "left" was never begun."""

    name: str
    status: Literal["done", "stopped", "failed", "left"]
    value: Any = None
    message: str = ""


def tally(counts: Counter[str]) -> str:
    """What became of all tasks in a few words, from the number of outcomes of each status."""
    words = {"done": "done", "stopped": "stopped, to go on", "failed": "failed", "left": "not begun"}
    return ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])


def run(
    tasks: Sequence[Task],
    *,
    workers: int = 1,
    threads: int | None = None,
    scheduler: str | None = None,
    hours: float | None = None,
    watch: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Run tasks and yield what became of each as it ends; after `hours`, or at Ctrl-C, the rest stop cleanly.

    One worker without a scheduler is this process itself. Several are processes with `threads` CPU threads each (by
    default the cores divided among them). `scheduler` is the address of a Dask scheduler, whose workers take the
    tasks, one at a time in each process; they need the same paths, and tasks that they have begun go on after Ctrl-C
    here. `watch` is called twice a second while others work. Raises UsageError for wrong arguments and where the
    scheduler cannot be reached.
    """
    check(workers, hours, threads, scheduler)
    _require_names(tasks)
    deadline = None if hours is None else time.time() + 3600 * hours
    if not tasks:
        return iter(())
    if scheduler is not None:
        return _elsewhere(tasks, _Cluster(scheduler), len(tasks), deadline, watch)
    if workers == 1:
        return _here(tasks, deadline)
    pool = _Processes(threads or max(1, cores() // workers))
    return _elsewhere(tasks, pool, workers, deadline, watch)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(workers: int, hours: float | None, threads: int | None = None, scheduler: str | None = None) -> None:
    """UsageError where an argument makes no sense; for programs that read data before they run anything."""
    if workers < 1:
        raise UsageError(f"--workers must be at least 1; got {workers}")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be at least 1; got {threads}")
    if hours is not None and not 0 < hours < float("inf"):
        raise UsageError(f"--hours must be a positive number; got {hours}")
    address = None if scheduler is None else re.fullmatch(r"(\w+://)?(\[[\w:.%]+\]|[^\s/:]+):(\d+)/?", scheduler)
    if scheduler is not None and (address is None or int(address[3]) >= 2**16):
        raise UsageError(f"--scheduler must be host:port, such as tcp://host:8786; got {scheduler!r}")


def _require_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tasks are named {name!r}; each run needs a name of its own")


def perform(task: Task, deadline: float | None) -> Outcome:
    """Call a task's function; what torchdfa raises on purpose becomes its outcome."""
    with _ONE_AT_A_TIME:
        if asked():
            return Outcome(task.name, "left", message="not begun")
        if over(deadline):
            return Outcome(task.name, "left", message="not begun: the time was over")
        try:
            return Outcome(task.name, "done", task.function(*task.arguments, deadline=deadline))
        except Stopped as stop:
            return Outcome(task.name, "stopped", message=str(stop))
        except (UsageError, ConversionError, RunError) as error:
            return Outcome(task.name, "failed", message=str(error))


def over(deadline: float | None) -> bool:
    """Whether a deadline in Unix time has passed; None never does."""
    return deadline is not None and time.time() >= deadline


def _here(tasks: Sequence[Task], deadline: float | None) -> Iterator[Outcome]:
    for k, task in enumerate(tasks):
        outcome = perform(task, deadline)
        yield outcome
        if outcome.status == "stopped" and not over(deadline):  # a signal is meant for all of them
            yield from (Outcome(later.name, "left", message="not begun") for later in tasks[k + 1 :])
            return


class _Pool(Protocol):
    def submit(self, task: Task, deadline: float | None) -> Future[Outcome]: ...
    def stop(self) -> None: ...
    def lost(self, deadline: float) -> str: ...
    def close(self) -> None: ...


def _elsewhere(
    tasks: Sequence[Task], pool: _Pool, at_once: int, deadline: float | None, watch: Callable[[], None]
) -> Iterator[Outcome]:
    """Hand out at most `at_once` tasks at a time; those of a worker that died go to another."""
    waiting, running = list(tasks), dict[Future[Outcome], Task]()
    tries = dict.fromkeys((task.name for task in tasks), 0)
    stopping = False
    with StopSignals() as signals:
        try:
            while waiting or running:
                if signals.signum and not stopping:  # once: a second signal would end the workers at once
                    stopping = True
                    pool.stop()
                while waiting and not stopping and len(running) < at_once:
                    task = waiting.pop(0)
                    tries[task.name] += 1
                    running[pool.submit(task, deadline)] = task
                if stopping:
                    yield from (Outcome(task.name, "left", message="not begun") for task in waiting)
                    waiting.clear()
                ended, _ = wait(running, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
                watch()
                for future in ended:
                    task = running.pop(future)
                    outcome = _outcome(future, task, stopping)
                    if outcome is None and tries[task.name] < TRIES:
                        waiting.insert(0, task)
                    else:
                        yield outcome or Outcome(task.name, "failed", message=_GIVEN_UP)
                if lost := deadline is not None and over(deadline) and pool.lost(deadline):
                    yield from (Outcome(task.name, "failed", message=lost) for task in [*running.values(), *waiting])
                    return
        finally:
            pool.close()


_GIVEN_UP = f"its worker died {TRIES} times (out of memory?); run it again to go on from its checkpoint"


def _outcome(future: Future[Outcome], task: Task, stopping: bool) -> Outcome | None:
    """None where the worker died for no reason of ours."""
    if future.cancelled():
        if stopping:
            return Outcome(task.name, "left", message="not begun")
        return Outcome(task.name, "failed", message="the scheduler was lost; once it is back the same command goes on")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker":
        return Outcome(task.name, "stopped", message="stopped; its last checkpoint is kept") if stopping else None
    logging.getLogger(__name__).error("%s failed", task.name, exc_info=error)
    return Outcome(task.name, "failed", message=f"{type(error).__name__}: {error}")


class _Processes:
    """Pools of one process of this machine each: a worker that dies takes no other task with it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._last: dict[Executor, Future[Outcome]] = {}  # what each pool has or had to do
        self._workers: set[BaseProcess] = set()

    def submit(self, task: Task, deadline: float | None) -> Future[Outcome]:
        for executor in [free for free, last in self._last.items() if last.done()]:
            try:
                return self._give(executor, task, deadline)
            except BrokenProcessPool:
                del self._last[executor]
        # Spawned, not forked: torch's thread pools do not survive a fork.
        context = multiprocessing.get_context("spawn")
        return self._give(ProcessPoolExecutor(1, context, _begin, (self._threads,)), task, deadline)

    def _give(self, executor: Executor, task: Task, deadline: float | None) -> Future[Outcome]:
        others = set(multiprocessing.active_children()) - self._workers
        with _signals_held():
            self._last[executor] = executor.submit(perform, task, deadline)
        self._workers = set(multiprocessing.active_children()) - others
        return self._last[executor]

    def stop(self) -> None:
        for worker in self._workers:
            worker.terminate()  # SIGTERM, at which a training saves and stops

    def lost(self, deadline: float) -> str:
        return ""  # each worker looks at the clock itself

    def close(self) -> None:
        """End the workers, at once where they are at work: that is after a second signal, or an error here."""
        if not all(last.done() for last in self._last.values()):
            for worker in self._workers:
                worker.kill()
        for executor in self._last:
            executor.shutdown(cancel_futures=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Processes begun within are born with SIGINT and SIGTERM held back, until `_begin` can hear them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _begin(threads: int) -> None:
    """What a worker process does first."""
    serve()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    import torch

    torch.set_num_threads(threads)


class _Cluster:
    """The workers of a Dask scheduler, which hands tasks of lost workers to others by itself."""

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ModuleNotFoundError:
            raise UsageError("--scheduler needs a package that is missing: pip install 'torchdfa[cluster]'") from None
        try:
            self._client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--scheduler {address} cannot be reached ({error}); start 'dask scheduler' there, or check the "
                "address, such as tcp://host:8786"
            ) from None
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is told by the outcomes
        self._executor = self._client.get_executor(pure=False)
        if not self._client.nthreads():
            logging.getLogger(__name__).warning(
                "the scheduler has no workers yet; runs begin when 'dask worker %s' is started", address
            )

    def submit(self, task: Task, deadline: float | None) -> Future[Outcome]:
        return self._executor.submit(perform, task, deadline)

    def stop(self) -> None:
        self._executor.shutdown(wait=False)  # Dask: cancels what has not ended

    def lost(self, deadline: float) -> str:
        """Why no answer will come any more, or ""."""
        if not self._client.nthreads():
            return "not begun: the scheduler has no workers; start 'dask worker' with its address"
        if over(deadline + SECONDS_OF_GRACE):
            return f"no answer within {SECONDS_OF_GRACE} s of the end of --hours; it goes on from its last checkpoint"
        return ""

    def close(self) -> None:
        self._client.close()
