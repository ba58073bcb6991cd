"""Where corpora are made from: folders with sidecars, and manifests in CSV and in JSON lines, packed or not."""

import gzip
import json

from fuzzing import Door

from mgjax.audio.metadata import MetadataError
from mgjax.data import sources

ROWS = [
    {"path": "a.wav", "title": "A", "bpm": 90, "moods": ["calm", "dark"], "description": "a calm piano"},
    {"path": "b.wav", "bpm": "120.5", "instrument": "piano, drums", "genre": None, "sample_rate": 32000},
    {"path": "c.wav", "info_path": "a.json"},
]


def write(folder):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    table = 'path,title,bpm,moods,description\na.wav,A,90,"calm, dark",a calm piano\nb.wav,,,,"say ""polka"""\n'
    manifests = {"csv": table.encode(), "jsonl": text.encode(), "jsonl.gz": gzip.compress(text.encode(), mtime=0)}
    for name, content in (manifests | {"files": b""}).items():
        (folder / name).mkdir()
        (folder / name / "a.json").write_text(json.dumps(ROWS[0]))
        (folder / name / ("a.wav" if name == "files" else f"songs.{name}")).write_bytes(content)


def read(folder):
    found = sources.find(folder if folder.name == "files" else folder / f"songs.{folder.name}")
    for source in found:
        source.metadata()


# What is wrong with the metadata of a piece is told with the name of the piece, in report.json.
DOOR = Door(write, read, ("*/a.json", "*/songs.*"), unnamed=(MetadataError,))


def test_manifests(endure):
    endure("manifests")
