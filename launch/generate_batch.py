"""Makes music for every prompt of a file, on all devices of one host or of many.

    python launch/generate_batch.py --model facebook/musicgen-small --prompts prompts.jsonl --out music --seconds 20

On several hosts each of them starts this command; launch/README.md says how. The same command goes on after an
interruption. With --help it says what a line of the prompts and the folder hold.
"""

import sys

from mgjax.cli import batch

if __name__ == "__main__":
    sys.exit(batch.main())
