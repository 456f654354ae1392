"""Progress bars: rich's in a terminal, and one that needs no widgets in a notebook.

rich shows its bars in a notebook through ipywidgets, and warns where they are not installed; and what widgets show is
not kept in the notebook's file. Here the bar is one output that is written anew, as notebooks can by themselves: the
file keeps its last state.
"""

import collections
import contextlib
import html
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

SECONDS = 0.1
"""The time between two states of a notebook's bar: more often nobody sees them."""

WINDOW = 30.0
"""The speed is that of so many seconds past: what was compiled or read from a store at first says little of it."""


def kernel() -> bool:
    """Whether this runs in the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


def bar(text: str, total: float | None = None, *, rate: str = "", stderr: bool = False) -> "Bar":
    """A progress bar, to be used in a `with` statement: in a notebook below the cell, else in the terminal.

    Args:
        text: what is done. total: how many steps there are; None where that is not known.
        rate: what a step is called where the speed is shown; "" shows none.
        stderr: whether a terminal's bar goes to the standard error output.

    Raises:
        ImportError: it is for a terminal, and rich is not installed.

    >>> with bar("counting", 2) as shown:  # doctest: +ELLIPSIS
    ...     shown.advance()
    ...     shown.advance()
    counting ... 2/2 ...
    """
    return (_Notebook if kernel() else _Terminal)(text, total, rate, stderr)


def track(steps: Iterable[Any], text: str, total: float | None = None) -> Iterator[Any]:
    """The steps, with a bar that counts them.

    >>> list(track(range(2), "counting", 2))
    counting ... 2/2 ...
    [0, 1]
    """
    with bar(text, total) as shown:
        for step in steps:
            yield step
            shown.advance()


@contextlib.contextmanager
def status(console: Any, text: str) -> Generator[None, None, None]:
    """What is done at the moment, on a console of rich: a line that goes away, or that stays in a notebook."""
    if kernel():
        console.print(text)
        yield
        return
    with console.status(text):
        yield


class Bar:
    """A bar with `text`, `total` and the number of steps `done`."""

    def __init__(self, text: str, total: float | None, rate: str, stderr: bool):
        self.text, self.total, self.rate, self.stderr = text, total, rate, stderr
        self.done = 0.0
        self.began = time.monotonic()
        self.past = collections.deque([(self.began, 0.0)])

    def advance(self, steps: float = 1, *, text: str | None = None, total: float | None = None) -> None:
        """Counts steps; None leaves the text or the total as it is."""
        self.done += steps
        now = time.monotonic()
        self.past.append((now, self.done))
        while len(self.past) > 2 and now - self.past[1][0] > WINDOW:
            self.past.popleft()
        self.text = self.text if text is None else text
        self.total = self.total if total is None else total
        self._show()

    def __enter__(self) -> "Bar":
        self.began = time.monotonic()
        self.past = collections.deque([(self.began, 0.0)])
        self._start()
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        # A reader who stops early leaves the bar where it is.
        if kind is None and self.total is None:
            self.total = self.done
        self._stop(kind is None)

    @property
    def speed(self) -> float:
        """The steps in a second; 0 where that is not known yet."""
        (began, before), (now, after) = self.past[0], self.past[-1]
        return (after - before) / (now - began) if now > began else 0.0

    @property
    def told(self) -> str:
        """The speed as text."""
        return f"{self.speed:.3g} {self.rate}/s" if self.rate and self.speed else ""

    def _start(self) -> None: ...

    def _show(self) -> None: ...

    def _stop(self, finished: bool) -> None: ...


class _Terminal(Bar):
    def _start(self) -> None:
        try:
            from rich import progress
            from rich.console import Console
        except ImportError as error:
            raise ImportError("the progress bar needs rich: pip install rich") from error
        columns = [
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            *([progress.TextColumn("{task.fields[rate]}")] if self.rate else []),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
        ]
        self.rich = progress.Progress(*columns, console=Console(stderr=self.stderr))
        self.task = self.rich.add_task(self.text, total=self.total, rate="")
        self.rich.start()

    def _show(self) -> None:
        self.rich.update(
            self.task, completed=self.done, total=self.total, description=self.text, rate=self.told
        )

    def _stop(self, finished: bool) -> None:
        self._show()
        self.rich.stop()


class _Notebook(Bar):
    def _start(self) -> None:
        from IPython.display import display

        self.shown = time.monotonic()
        self.handle: Any = display(self._data(), raw=True, display_id=True)

    def _show(self) -> None:
        if time.monotonic() - self.shown >= SECONDS:
            self._update()

    def _stop(self, finished: bool) -> None:
        self._update("" if finished else "stopped")

    def _update(self, state: str = "") -> None:
        self.shown = time.monotonic()
        self.handle.update(self._data(state), raw=True)

    def _data(self, state: str = "") -> dict[str, str]:
        """The bar as a page and as text."""
        of = f"{self.done:g}" + (f"/{self.total:g}" if self.total is not None else "")
        seconds = time.monotonic() - self.began
        if self.total is not None and self.done < self.total and self.speed and not state:
            left = f"{_clock((self.total - self.done) / self.speed)} left"
        else:
            left = _clock(seconds)
        says = " · ".join(filter(None, [of, self.told, left, state]))
        known = f' value="{self.done:g}" max="{max(self.total, 1e-9):g}"' if self.total is not None else ""
        name = html.escape(self.text)
        page = (
            f'<div>{name} <progress aria-label="{name}"{known} style="width:16em;max-width:50%;vertical-align:middle">'
            f"</progress> {html.escape(says)}</div>"
        )
        return {"text/plain": f"{self.text} {says}", "text/html": page}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
