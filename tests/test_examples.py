"""Every public function shows an example in its docstring, and the examples run as printed."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import score_jax as sj

SCOPE = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "sj": sj}
"""Names that examples use without importing them, as docs/api/index.md says."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def example_of(name):
    text = inspect.getdoc(getattr(sj, name)) or ""
    return doctest.DocTestParser().get_doctest(text, dict(SCOPE), name, name, 0)


def test_every_public_function_has_an_example():
    functions = [name for name in sj.__all__ if inspect.isfunction(getattr(sj, name))]
    assert len(functions) > 80
    assert not [name for name in functions if not example_of(name).examples]


@pytest.mark.parametrize("name", sj.__all__)
def test_the_example_runs_as_printed(name, capsys):
    example = example_of(name)
    if not example.examples:
        pytest.skip("a record without an example")
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(example)
    assert not runner.failures, capsys.readouterr().out


def test_a_wrong_example_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", "wrong", 0)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(wrong, out=lambda text: None)
    assert runner.failures == 1
