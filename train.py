"""The launcher: `python train.py` trains the default SAE; `--help` lists the commands."""

import sys

from sae.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
