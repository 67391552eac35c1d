"""The command `score-jax`, as python -m score_jax."""

import sys

from score_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
