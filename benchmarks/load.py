"""Peak resident memory of loading musicgen-small's shapes, against the size of its weights in float32.

    python benchmarks/load.py              # writes 2.4 GB of random weights to a temporary folder first

Each load runs in a process of its own, because the peak of a process never falls.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LOAD = """
import json, resource, sys, time
import jax.numpy as jnp
import mgjax
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
model = mgjax.load(sys.argv[1], **json.loads(sys.argv[2]))
seconds = time.perf_counter() - began
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, seconds)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a folder with a model; random weights of musicgen-small's shapes where not given"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.model or temporary
        if args.model is None:
            # In a process of its own, so that this one's memory does not crowd the machine.
            subprocess.run([sys.executable, "-c", WRITE, temporary], check=True)
        size = sum(path.stat().st_size for path in Path(directory).glob("*.safetensors"))
        print(f"files: {size / 1e9:.3f} GB")
        for options in ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"weights": "bfloat16"}, {"weights": "int8"}):
            [(kind, dtype)] = options.items()
            output = subprocess.run(
                [sys.executable, "-c", LOAD, directory, json.dumps(options)], check=True, capture_output=True, text=True
            ).stdout
            before, peak, seconds = (float(number) for number in output.split())
            print(
                f"{kind} {dtype}: peak {peak / 1e9:.3f} GB, {peak / size:.3f} of the float32 weights "
                f"({before / 1e9:.3f} GB of it before loading), {seconds:.1f} s"
            )


WRITE = """
import sys
from mgjax.checkpoints.native import Checkpoint
from mgjax.config.model import ModelConfig
from mgjax.checkpoints.random_weights import random_variables
from mgjax.checkpoints import huggingface
huggingface.write_model(sys.argv[1], Checkpoint(ModelConfig(), random_variables(ModelConfig())))
"""


if __name__ == "__main__":
    main()
