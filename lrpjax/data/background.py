"""Work beside the main loop: one thread that does what it is given in order, and ends with its owner."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """One thread that runs jobs in the order in which they are given; after one that has failed it runs no other.

    Whoever gives jobs keeps their number small by waiting for the oldest. Leaving the context waits for all of them and
    ends the thread.

    Args:
      thread: whether there is a thread; without one a job runs when it is given.

    Example:
      >>> with Background() as background:
      ...     jobs = [background.submit(divmod, 7, n) for n in (2, 0, 3)]
      >>> jobs[0].result()
      (3, 1)
      >>> [type(job.exception()).__name__ for job in jobs[1:]]
      ['ZeroDivisionError', 'RuntimeError']
    """

    def __init__(self, thread: bool = True):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lrpjax-store") if thread else None
        self._failed = False

    def submit(self, job: Callable[..., Any], *args: Any) -> Future:
        """Has a job done.

        Args:
          job: a function.
          *args: its arguments.

        Returns:
          The future of its result, or of its exception.
        """
        if self._pool is not None:
            return self._pool.submit(self._run, job, *args)
        done: Future = Future()
        try:
            done.set_result(self._run(job, *args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _run(self, job: Callable[..., Any], *args: Any) -> Any:
        if self._failed:
            raise RuntimeError("a job before this one has failed")
        try:
            return job(*args)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
