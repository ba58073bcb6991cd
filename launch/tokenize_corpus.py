"""Encodes a corpus of sound into a corpus of codes, on one machine or by any runner of Apache Beam.

    python launch/tokenize_corpus.py corpus tokens --codec runs/codec/best --workers 4
    python launch/tokenize_corpus.py /nfs/corpus /nfs/tokens --codec /nfs/codec \
        --beam=--runner=FlinkRunner --beam=--flink_master=host:8081 --beam=--environment_type=LOOPBACK

It is `mgjax corpus tokenize`, for schedulers that start scripts. Every worker has to see the folders under the same
names. An interrupted run goes on where it was when the command is given again.
"""

import sys

from mgjax import cli

if __name__ == "__main__":
    sys.exit(cli.main(["corpus", "tokenize", *sys.argv[1:]]))
