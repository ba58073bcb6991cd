"""Says what a score is: audiocraft's metadata fields, and a caption in one of many wordings.

A caption leaves out what it likes, and never says what is not so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgjax.data.synthetic.composition import Score
from mgjax.data.synthetic.form import pick

_NOUNS = ("piece", "track", "tune", "instrumental")
_TITLES = (
    *("Harbour", "Window", "River", "Lantern", "Garden", "Avenue", "Hillside", "Letter", "Mirror", "Morning"),
    *("Station", "Island", "Orchard", "Staircase", "Parade", "Horizon", "Attic", "Bridge", "Meadow", "Signal"),
)
_MINOR = ("minor", "dorian")
_TEMPI = (  # up to so many beats per minute
    (72, ("slow", "unhurried")),
    (100, ("moderate", "mid-tempo")),
    (134, ("lively", "upbeat")),
    (999, ("fast", "quick")),
)
_COMPOUND = 1.3  # a dotted quarter feels so much faster than a quarter
_ROLES = {
    "melody": ("{} melody", "{} lead"),
    "chords": ("{} chords", "{} accompaniment"),
    "arpeggio": ("{} arpeggios", "arpeggiated {}"),
    "bass": ("{}",),
    "drums": ("{}",),
}


@dataclass(frozen=True)
class _Facts:
    """What is true of a score, in words.

    Attributes:
      genre: The style.
      moods: From the mode, the tempo and the style.
      words: What else is said of the style.
      instruments: All that sound, the leading one first, each once.
      roles: The players as (role, instrument), in the same order.
      tempi: Words for the tempo.
    """

    genre: str
    moods: tuple[str, ...]
    words: tuple[str, ...]
    instruments: tuple[str, ...]
    roles: tuple[tuple[str, str], ...]
    tempi: tuple[str, ...]
    bpm: int
    key: str
    metre: str


def metadata(score: Score, name: str, rng: np.random.Generator) -> dict[str, Any]:
    """What is known of a score, in the fields of audiocraft's MusicInfo, as plain values for JSON.

    Args:
      score: The notes.
      name: The name of the piece among its like.
      rng: Chooses the words.
    """
    facts = _facts(score)
    moods = [facts.moods[i] for i in rng.permutation(len(facts.moods))[: rng.integers(1, 4)]]
    keywords = [*facts.words, pick(rng, facts.tempi), f"{score.style.metre} time", "instrumental"]
    return {
        "title": f"{moods[0].title()} {pick(rng, _TITLES)}",
        "artist": "mgjax",
        "key": score.key,
        "bpm": score.bpm,
        "genre": score.style.name,
        "moods": moods,
        "keywords": [keywords[i] for i in rng.permutation(len(keywords))],
        "description": caption(score, rng),
        "name": name,
        "instrument": ", ".join(facts.instruments),
    }


def caption(score: Score, rng: np.random.Generator) -> str:
    """One caption of a score, in words chosen by `rng`."""
    facts = _facts(score)
    kinds = (_tags, _short, _sentence, _story)
    text = kinds[int(rng.choice(len(kinds), p=[0.12, 0.23, 0.35, 0.3]))](facts, rng)
    return text if rng.random() < 0.3 else text[0].upper() + text[1:]


def _facts(score: Score) -> _Facts:
    style = score.style
    tracks = sorted(score.tracks, key=lambda track: track.part.role != "melody")
    felt = score.bpm * (_COMPOUND if style.metre == "6/8" else 1)
    drummed = any(track.part.role == "drums" for track in tracks)
    moods = style.moods["minor" if score.mode in _MINOR else "major"]
    if felt >= 118 and drummed:
        moods += ("energetic",)
    if felt < 92 and not drummed:
        moods += ("calm",)
    return _Facts(
        genre=style.name,
        moods=moods,
        words=style.words,
        instruments=tuple(dict.fromkeys(track.instrument for track in tracks)),
        roles=tuple((track.part.role, track.instrument) for track in tracks),
        tempi=next(words for limit, words in _TEMPI if felt <= limit),
        bpm=score.bpm,
        key=score.key,
        metre=style.metre,
    )


def _listed(words: Sequence[str]) -> str:
    """The words as in "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _with_article(text: str) -> str:
    return f"{'an' if text[0].lower() in 'aeiou' or text.startswith('8') else 'a'} {text}"


def _some(rng: np.random.Generator, words: Sequence[str], most: int) -> list[str]:
    """From one to `most` of the words, in their order."""
    count = int(rng.integers(1, min(most, len(words)) + 1))
    return [words[i] for i in sorted(rng.permutation(len(words))[:count])]


def _subject(facts: _Facts, rng: np.random.Generator) -> str:
    """What it is, with an adjective or two: "a slow, wistful waltz"."""
    adjectives = []
    if rng.random() < 0.45:
        adjectives.append(pick(rng, facts.tempi))
    if rng.random() < 0.75:
        adjectives.append(pick(rng, facts.moods))
    noun = "" if facts.genre.split()[-1] in ("waltz", "march", "lullaby", "jig", "ballad") else f" {pick(rng, _NOUNS)}"
    return _with_article(" ".join([", ".join(adjectives), facts.genre + noun]).strip())


def _scoring(facts: _Facts, rng: np.random.Generator) -> str:
    """Who plays."""
    instruments = facts.instruments
    if len(instruments) == 1:
        return pick(rng, ("for solo {}", "played on {} alone", "with {} only")).format(instruments[0])
    choice = int(rng.integers(5))
    backing = [name for role, name in dict.fromkeys(facts.roles) if role != "melody" and name != instruments[0]]
    if choice == 0 and facts.roles[0][0] == "melody" and backing:
        return f"led by {instruments[0]} over {_listed(_some(rng, backing, 3))}"
    if choice == 1:
        return f"featuring {_listed(_some(rng, instruments, 3))}"
    if choice == 2:
        return f"for {_listed(instruments)}"
    if choice == 3:
        players = [pick(rng, _ROLES[role]).format(instrument) for role, instrument in facts.roles]
        return f"with {_listed(_some(rng, players, 4))}"
    return f"with {_listed(_some(rng, instruments, 4))}"


def _numbers(facts: _Facts, rng: np.random.Generator) -> list[str]:
    """Key, tempo and metre, some of them, in any order."""
    said = [
        pick(rng, (f"in {facts.key}", f"in the key of {facts.key}")),
        pick(rng, (f"at {facts.bpm} bpm", f"at {facts.bpm} beats per minute", f"at {facts.bpm} BPM")),
        f"in {facts.metre} time",
    ]
    kept = [words for words, chance in zip(said, (0.4, 0.5, 0.25), strict=True) if rng.random() < chance]
    return [kept[i] for i in rng.permutation(len(kept))]


def _tags(facts: _Facts, rng: np.random.Generator) -> str:
    """Words and commas."""
    tags = [facts.genre, *_some(rng, facts.instruments, 3), pick(rng, facts.moods), *_some(rng, facts.words, 2)]
    tags += [pick(rng, facts.tempi)] * (rng.random() < 0.5) + [f"{facts.bpm} bpm"] * (rng.random() < 0.5)
    tags += [facts.key] * (rng.random() < 0.3) + ["instrumental"] * (rng.random() < 0.3)
    return ", ".join(tags[i] for i in rng.permutation(len(tags)))


def _short(facts: _Facts, rng: np.random.Generator) -> str:
    """A few words, as people type them."""
    instrument = pick(rng, facts.instruments)
    tempo, mood = pick(rng, facts.tempi), pick(rng, facts.moods)
    wordings = (
        f"{mood} {facts.genre} with {instrument}",
        f"{tempo} {facts.genre} with {_listed(_some(rng, facts.instruments, 2))}",
        f"{facts.genre} {instrument}",
        f"{tempo}, {mood} {facts.genre}",
        _subject(facts, rng),
        f"{_subject(facts, rng)} with {instrument}",
        f"{facts.genre}, {pick(rng, facts.words)}, {mood}",
    )
    return pick(rng, wordings)


def _sentence(facts: _Facts, rng: np.random.Generator) -> str:
    """One full sentence."""
    return " ".join([_subject(facts, rng), _scoring(facts, rng), *_numbers(facts, rng)]) + "."


def _story(facts: _Facts, rng: np.random.Generator) -> str:
    """Two to four sentences."""
    opening = pick(rng, ("{}.", "this is {}.", "{} to listen to.", "instrumental music: {}."))
    sentences = [opening.format(_subject(facts, rng))]
    roles: dict[str, list[str]] = {}
    for role, instrument in facts.roles:
        if instrument not in roles.setdefault(role, []):
            roles[role].append(instrument)
    details = []
    if "melody" in roles:
        lead = _listed(roles["melody"])
        several = len(roles["melody"]) > 1
        details.append(f"the melody is {'shared by' if several else 'played by the'} {lead}")
    backing = [*roles.get("chords", []), *roles.get("arpeggio", [])]
    if backing:
        details.append(f"{_listed(list(dict.fromkeys(backing)))} {pick(rng, ('in the background', 'for harmony'))}")
    rhythm = [*roles.get("bass", []), *roles.get("drums", [])]
    if rhythm:
        details.append(f"{_listed(rhythm)} {pick(rng, ('for the rhythm', 'underneath'))}")
    if "drums" not in roles:
        details.append(pick(rng, ("there are no drums", "no percussion")))
    details.append(f"the tempo is {pick(rng, facts.tempi)}, {facts.bpm} beats per minute")
    details.append(f"it is in {facts.key}")
    details.append(f"the mood is {_listed(_some(rng, facts.moods, 2))}")
    if facts.metre != "4/4":
        details.append(f"it is counted in {facts.metre}")
    kept = rng.permutation(len(details))[: rng.integers(1, 4)]
    sentences += [details[i][0].upper() + details[i][1:] + "." for i in kept]
    return " ".join(sentences)
