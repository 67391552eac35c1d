"""Progress of a loop: one line that redraws on a terminal, a few plain lines otherwise."""

import sys
import time

_silenced = False


def silence() -> None:
    """Shows no progress and no announcements any more, as in processes that repeat another one."""
    global _silenced
    _silenced = True


class Progress:
    """Shows the progress, rate and remaining time of a loop; a context manager.

    Args:
        total: Number of rounds of the whole loop.
        label: Name of the work, such as "train".
        unit: Name of one round, such as "step".
        start: Number of rounds done before.
        every: Without a terminal, seconds between two lines unless a tenth of the total is done.
        shown: If False, print nothing.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str,
        start: int = 0,
        every: float = 30.0,
        shown: bool = True,
    ):
        self._total, self._label, self._unit = total, label, unit
        self._start, self._every, self._shown = start, every, shown
        self._done, self._began = start, time.monotonic()
        self._printed_done, self._printed_at = start, self._began
        self._bar = None
        if shown and not _silenced and sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                desc=label,
                unit=f" {unit}s",
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {n}/{total} {rate_fmt}, "
                "{remaining} left{postfix}",
                smoothing=0.05,
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, **values: float) -> None:
        """Reports that `done` rounds of the total are done; `values` are shown beside them."""
        if self._bar is not None:
            if values:
                shown = {name: f"{value:.4g}" for name, value in values.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done - self._done)
        self._done = done
        if self._shown and self._bar is None and self._is_due():
            self._print_line(values)

    def _is_due(self) -> bool:
        done, before = self._done * 10 // self._total, self._printed_done * 10 // self._total
        return done > before or time.monotonic() - self._printed_at > self._every

    def _print_line(self, values: dict[str, float]) -> None:
        now = time.monotonic()
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        left = int((self._total - self._done) / max(rate, 1e-9))
        shown = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        announce(
            f"{self._label} {self._done}/{self._total}{shown}  {rate:.3g} {self._unit}s/s  "
            f"{left // 60}:{left % 60:02d} left"
        )
        self._printed_done, self._printed_at = self._done, now

    def note(self, text: str) -> None:
        """Prints a line of its own without breaking the line that redraws."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._shown:
            announce(text)


def announce(text: str, shown: bool = True) -> None:
    """Prints a line at once, if `shown`."""
    if shown and not _silenced:
        print(text, flush=True)
