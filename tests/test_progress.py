import io
import sys

from score_jax.progress import Progress


def test_piped_output_is_a_few_plain_lines(capsys):
    with Progress(1000, "train", "step") as progress:
        for done in range(1, 1001):
            progress.update(done, loss=1 / done)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("train 500/1000  loss 0.002  ")
    assert "steps/s" in lines[4]
    assert lines[4].endswith(" left")
    assert "\r" not in "".join(lines)


def test_a_continued_loop_counts_its_rate_from_where_it_began(capsys):
    with Progress(100, "train", "step", start=90, every=0.0) as progress:
        progress.update(91)
    assert capsys.readouterr().out.startswith("train 91/100  ")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_one_line_redraws(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(50, "sample", "image") as progress:
        for done in range(1, 51):
            progress.update(done, loss=0.5)
    shown = terminal.getvalue()
    assert "\r" in shown
    assert shown.count("\n") == 1
    last = shown.rsplit("\r", 1)[-1]
    assert "sample 100%" in last
    assert "50/50" in last
    assert "loss=0.5" in last
    assert "left" in last
