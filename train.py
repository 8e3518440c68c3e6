"""The launcher: `python train.py` trains the default autoencoder; `python train.py --help`."""

import sys

from sae.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
