"""Pictures of sound: spectrograms of generated clips, and below them a real clip before and after the codec.

    python benchmarks/pictures.py CLIPS --out clips.png [--model mini] [--count 6]

CLIPS is a folder of sound files, such as benchmarks/adherence.py --out leaves; its prompts.json gives the titles. The
last two rows are a held-out synthetic piece, as it is and after the model's codec. Time goes to the right, frequency up
to half the sample rate, both evenly; from black to white are 90 dB below the loudest of each picture. Look for: a floor
of noise between the notes, the frequency at which the sound stops, drums as narrow upright lines, harmonics as level
ones that begin and end sharply.
"""

import json
from pathlib import Path

import clips
import librosa
import numpy as np
from PIL import Image, ImageDraw

import mgjax

DECIBELS = 90
WIDTH, HEIGHT, TITLE = 1200, 220, 18  # pixels of a picture
# From quiet to loud: black, violet, red, yellow, white.
COLOURS = np.array([(0, 0, 0), (60, 15, 110), (185, 45, 100), (250, 130, 40), (250, 230, 120), (255, 255, 255)])


def main() -> None:
    parser = clips.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="CLIPS")
    parser.add_argument("--out", type=Path, default=Path("clips.png"))
    parser.add_argument("--model", default="mini", help="whose codec is shown")
    parser.add_argument("--count", type=int, default=6)
    args = parser.parse_args()
    sounds, rate = clips.read_folder(args.folder, args.count)
    note = args.folder / "prompts.json"
    titles = json.loads(note.read_text())["prompts"] if note.exists() else [""] * len(sounds)
    codec = mgjax.load_codec(args.model)
    (piece,) = clips.held_out(1, len(sounds[0]) / rate, codec.sample_rate, args.music_seed)
    coded = codec.decode(codec.encode(piece.sound))[0, : len(piece.sound)].mean(axis=1)
    what = piece.metadata["description"]
    rows = [(sound, rate, title) for sound, title in zip(sounds, titles, strict=False)]
    rows += [(piece.sound, codec.sample_rate, f"REAL: {what}"), (coded, codec.sample_rate, "REAL, AFTER THE CODEC")]
    sheet = Image.new("RGB", (WIDTH, len(rows) * (HEIGHT + TITLE)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (sound, own_rate, title) in enumerate(rows):
        top = number * (HEIGHT + TITLE)
        draw.text((4, top + 3), f"{title[:150]}  ({len(sound) / own_rate:g} s, to {own_rate / 2000:g} kHz)", "black")
        sheet.paste(picture(sound), (0, top + TITLE))
    sheet.save(args.out)
    print(args.out)


def picture(sound: np.ndarray) -> Image.Image:
    """The spectrogram of a clip [n]."""
    power = np.abs(librosa.stft(sound, n_fft=1024, hop_length=128)) ** 2
    level = librosa.power_to_db(power, ref=np.max, top_db=DECIBELS) / DECIBELS + 1  # from 0 to 1
    places = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(level[::-1], places, channel) for channel in COLOURS.T], axis=-1)
    return Image.fromarray(colours.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


if __name__ == "__main__":
    main()
