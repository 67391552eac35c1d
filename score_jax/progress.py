"""One line that redraws on a terminal; a few plain lines when the output is piped."""

import sys
import time

import tqdm


class Progress:
    """Shows how far a loop is, how fast it goes and how long it will take; a context manager.

    Args:
        total: Number of rounds of the whole loop.
        label: What is being done, such as "train".
        unit: What a round is called, such as "step".
        start: Rounds done before.
        every: When piped, seconds between lines at most, unless a tenth of the total is done sooner.
    """

    def __init__(self, total: int, label: str, unit: str, start: int = 0, every: float = 30.0):
        self._total, self._label, self._unit, self._start, self._every = total, label, unit, start, every
        self._done, self._began = start, time.monotonic()
        self._printed_done, self._printed_at = start, self._began
        self._bar = None
        if sys.stderr.isatty():
            layout = "{desc} {percentage:3.0f}% |{bar}| {n}/{total} {rate_fmt}, {remaining} left{postfix}"
            self._bar = tqdm.tqdm(
                total=total, initial=start, desc=label, unit=f" {unit}s", dynamic_ncols=True, bar_format=layout, smoothing=0.05
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, **values: float) -> None:
        """Tells that `done` rounds of the total are done; `values` are shown beside."""
        if self._bar is not None:
            if values:
                self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            self._bar.update(done - self._done)
            self._done = done
            return
        self._done = done
        now = time.monotonic()
        tenth = self._done * 10 // self._total > self._printed_done * 10 // self._total
        if not (tenth or now - self._printed_at > self._every):
            return
        rate = (done - self._start) / max(now - self._began, 1e-9)
        left = (self._total - done) / max(rate, 1e-9)
        shown = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        print(
            f"{self._label} {done}/{self._total}{shown}  {rate:.3g} {self._unit}s/s  {int(left) // 60}:{int(left) % 60:02d} left",
            flush=True,
        )
        self._printed_done, self._printed_at = done, now

    def note(self, text: str) -> None:
        """Prints a line of its own without breaking the one that redraws."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)
