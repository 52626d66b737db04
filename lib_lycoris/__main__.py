"""`python -m lib_lycoris VERB`: the command line."""

from __future__ import annotations

import sys

from lib_lycoris.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
