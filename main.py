"""The command `score-jax`, from a checkout: python main.py --help."""

import sys

from score_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
