"""Metadata of a score, in audiocraft's fields, with a caption in one of many wordings.

A caption may leave out facts, and states only true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mgjax.synthetic.composition import Score
from mgjax.synthetic.form import pick

_NOUNS = ("piece", "track", "tune", "instrumental")
_TITLES = (
    *("Harbour", "Window", "River", "Lantern", "Garden", "Avenue", "Hillside", "Letter", "Mirror", "Morning"),
    *("Station", "Island", "Orchard", "Staircase", "Parade", "Horizon", "Attic", "Bridge", "Meadow", "Signal"),
)
_MINOR = ("minor", "dorian")
_TEMPI = (  # upper limit in beats per minute, and words
    (72, ("slow", "unhurried")),
    (100, ("moderate", "mid-tempo")),
    (134, ("lively", "upbeat")),
    (999, ("fast", "quick")),
)
_COMPOUND = 1.3  # how much faster a dotted quarter feels than a quarter
_ROLES = {
    "melody": ("{} melody", "{} lead"),
    "chords": ("{} chords", "{} accompaniment"),
    "arpeggio": ("{} arpeggios", "arpeggiated {}"),
    "bass": ("{}",),
    "drums": ("{}",),
}
_ALSO = {  # other names of styles
    "swing jazz": ("jazz", "swing"),
    "lo-fi hip hop": ("lofi", "lo-fi", "lofi hip hop"),
    "drum and bass": ("dnb", "drum & bass"),
    "bossa nova": ("bossa",),
    "classical piano": ("classical piano solo", "classical"),
    "Irish jig": ("jig", "Celtic jig"),
    "synthwave": ("retrowave", "80s synthwave"),
    "techno": ("techno music",),
    "house": ("house music",),
    "country": ("country music",),
    "ambient": ("ambient music",),
    "folk": ("folk music", "acoustic folk"),
    "pop": ("pop music",),
}
_FAMILIES = ("guitar", "saxophone", "bass", "drums")  # last words of instruments that may stand for the whole name
_NUMBERS = {"bpm": 0.68, "key": 0.62, "metre": 0.08}  # probabilities to be mentioned, except in `_typed`


@dataclass(frozen=True)
class _Facts:
    """Facts about a score, in words that one caption uses throughout.

    Attributes:
      genre: The style.
      moods: From the mode, the tempo and the style.
      words: Other words for the style.
      instruments: The distinct instruments, the leading one first.
      roles: The tracks as (role, instrument), in the same order.
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
    """The metadata of a score, in the fields of audiocraft's MusicInfo, as JSON values.

    Args:
      score: The score.
      name: The name of the piece.
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
    """A caption of a score, in words chosen by `rng`."""
    facts = _renamed(_facts(score), rng)
    kinds = (_tags, _typed, _sentence, _story)
    text = kinds[int(rng.choice(len(kinds), p=[0.2, 0.2, 0.35, 0.25]))](facts, rng)
    return text if rng.random() < 0.4 else text[0].upper() + text[1:]


def _facts(score: Score) -> _Facts:
    style = score.style
    tracks = sorted(score.tracks, key=lambda track: track.part.role != "melody")
    felt_bpm = score.bpm * (_COMPOUND if style.metre == "6/8" else 1)
    has_drums = any(track.part.role == "drums" for track in tracks)
    moods = style.moods["minor" if score.mode in _MINOR else "major"]
    if felt_bpm >= 118 and has_drums:
        moods += ("energetic",)
    if felt_bpm < 92 and not has_drums:
        moods += ("calm",)
    return _Facts(
        genre=style.name,
        moods=moods,
        words=style.words,
        instruments=tuple(dict.fromkeys(track.instrument for track in tracks)),
        roles=tuple((track.part.role, track.instrument) for track in tracks),
        tempi=next(words for limit, words in _TEMPI if felt_bpm <= limit),
        bpm=score.bpm,
        key=score.key,
        metre=style.metre,
    )


def _renamed(facts: _Facts, rng: np.random.Generator) -> _Facts:
    """The facts, sometimes with other names: "jazz" for swing jazz, "guitar" for one of the guitars."""
    genre = pick(rng, _ALSO[facts.genre]) if facts.genre in _ALSO and rng.random() < 0.3 else facts.genre
    if rng.random() > 0.2:
        return replace(facts, genre=genre)
    loose = {
        name: next((family for family in _FAMILIES if name.endswith(f" {family}")), name) for name in facts.instruments
    }
    return replace(
        facts,
        genre=genre,
        instruments=tuple(dict.fromkeys(loose.values())),
        roles=tuple((role, loose[name]) for role, name in facts.roles),
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


def _players(facts: _Facts, rng: np.random.Generator) -> list[str]:
    """All instruments, or some of them, usually with the leading one."""
    first, *others = facts.instruments
    if not others or rng.random() < 0.5:
        return [first, *others]
    return [first, *_some(rng, others, 3)] if rng.random() < 0.75 else _some(rng, facts.instruments, 3)


def _genre(facts: _Facts, rng: np.random.Generator) -> str:
    """The genre with a noun: "waltz", "rock piece"."""
    single = facts.genre.split()[-1] in ("waltz", "march", "lullaby", "jig", "music", "solo", "dnb", "beats")
    return facts.genre if single or rng.random() < 0.25 else f"{facts.genre} {pick(rng, _NOUNS)}"


def _subject(facts: _Facts, rng: np.random.Generator) -> str:
    """The genre with up to two adjectives: "a slow, wistful waltz"."""
    adjectives = []
    if rng.random() < 0.4:
        adjectives.append(pick(rng, facts.tempi))
    if rng.random() < 0.75:
        adjectives.append(pick(rng, facts.moods))
    noun = _genre(facts, rng) if rng.random() < 0.97 else pick(rng, _NOUNS)
    text = " ".join([", ".join(adjectives), noun]).strip()
    countable = noun.split()[-1] in (*_NOUNS, "waltz", "march", "lullaby", "jig", "solo")
    return _with_article(text) if countable and rng.random() < 0.8 else text


def _scoring(facts: _Facts, rng: np.random.Generator) -> str:
    """The instruments: "led by flute over piano and bass"."""
    instruments = facts.instruments
    if len(instruments) == 1:
        return pick(rng, ("for solo {}", "played on {} alone", "with {} only")).format(instruments[0])
    choice = int(rng.integers(5))
    backing = [name for role, name in dict.fromkeys(facts.roles) if role != "melody" and name != instruments[0]]
    if choice == 0 and facts.roles[0][0] == "melody" and backing:
        return f"led by {instruments[0]} over {_listed(_some(rng, list(dict.fromkeys(backing)), 3))}"
    if choice == 1:
        return f"featuring {_listed(_players(facts, rng))}"
    if choice == 2:
        return f"for {_listed(instruments)}"
    if choice == 3:
        players = [pick(rng, _ROLES[role]).format(instrument) for role, instrument in facts.roles]
        return f"with {_listed(players[:1] + _some(rng, players[1:], 3))}"
    return f"with {_listed(_players(facts, rng))}"


def _tempo(facts: _Facts, rng: np.random.Generator) -> str:
    """The tempo after a noun: "at 92 bpm"."""
    return pick(rng, ("at {} bpm", "at {} BPM", "at {} beats per minute", "at a tempo of {} bpm")).format(facts.bpm)


def _tempo_tag(facts: _Facts, rng: np.random.Generator) -> str:
    """The tempo by itself: "92 bpm"."""
    return pick(rng, ("{} bpm", "{} BPM", "{}bpm", "tempo: {}", "tempo {}", "{} beats per minute")).format(facts.bpm)


def _key_tag(facts: _Facts, rng: np.random.Generator) -> str:
    """The key by itself: "D minor"."""
    return pick(rng, ("{}", "{}", "in {}", "key of {}", "key: {}")).format(facts.key)


def _numbers(rng: np.random.Generator, **phrases: str) -> list[str]:
    """A random selection of the phrases for bpm, key and metre, in random order."""
    kept = [phrase for name, phrase in phrases.items() if phrase and rng.random() < _NUMBERS[name]]
    return [kept[i] for i in rng.permutation(len(kept))]


def _metre(facts: _Facts) -> str:
    """The metre, unless it is 4/4: "in 3/4 time"."""
    return "" if facts.metre == "4/4" else f"in {facts.metre} time"


def _tags(facts: _Facts, rng: np.random.Generator) -> str:
    """Tags, separated by commas."""
    tags = [facts.genre] * (rng.random() < 0.97) + _some(rng, facts.moods, 2) * (rng.random() < 0.75)
    tags += _players(facts, rng) * (rng.random() < 0.92) + _some(rng, facts.words, 2) * (rng.random() < 0.4)
    tags += [pick(rng, facts.tempi)] * (rng.random() < 0.3) + ["instrumental"] * (rng.random() < 0.2)
    tags += _numbers(rng, bpm=_tempo_tag(facts, rng), key=_key_tag(facts, rng), metre=_metre(facts)[3:])
    tags = tags or [facts.genre]
    if rng.random() < 0.5:
        tags = [tags[i] for i in rng.permutation(len(tags))]
    return ", ".join(tags)


def _typed(facts: _Facts, rng: np.random.Generator) -> str:
    """A short prompt, as people type them."""
    lead = facts.instruments[0] if rng.random() < 0.7 else pick(rng, facts.instruments)
    tempo, mood, bpm = pick(rng, facts.tempi), pick(rng, facts.moods), f"{facts.bpm} bpm"
    tonic, mode = facts.key.split()
    key = f"in {tonic}" if mode == "major" and rng.random() < 0.4 else f"in {facts.key}"
    return pick(
        rng,
        (
            f"{mood} {facts.genre} with {lead}",
            f"{mood} {facts.genre}" if lead in facts.genre else f"{mood} {lead} {facts.genre}",
            f"{mood} {lead}",
            facts.genre if lead in facts.genre else f"{facts.genre} {lead}",
            f"{facts.genre} with {_listed(facts.instruments)}",
            f"{tempo} {facts.genre} with {_listed(_some(rng, facts.instruments, 2))}",
            f"{bpm} {facts.genre} {key}",
            f"{bpm} {facts.genre} with {lead}",
            f"{facts.genre} {key} {bpm}",
            f"{facts.genre} {key}",
            f"{lead} {key}, {bpm}",
            f"{tempo} {mood} {facts.genre}",
            f"{mood} {facts.genre}, {bpm}, {key}",
            f"{facts.genre}, {lead}, {bpm}",
            facts.genre,
        ),
    )


def _sentence(facts: _Facts, rng: np.random.Generator) -> str:
    """One sentence."""
    key = pick(rng, ("in {}", "in the key of {}")).format(facts.key)
    numbers = _numbers(rng, bpm=_tempo(facts, rng), key=key, metre=_metre(facts))
    scoring = [_scoring(facts, rng)] * (rng.random() < 0.95)
    words = [*scoring, *numbers] if rng.random() < 0.6 else [*numbers, *scoring]
    text = " ".join([_subject(facts, rng), *words])
    return text if rng.random() < 0.3 else f"{text}."


def _story(facts: _Facts, rng: np.random.Generator) -> str:
    """Two to five sentences."""
    opening = pick(rng, ("{}.", "{}.", "this is {}.", "{} to listen to.", "instrumental music: {}."))
    subject = _subject(facts, rng)
    if rng.random() < 0.5:
        subject += f" {_scoring(facts, rng)}"
    details = [details for details in (_parts(facts, rng),) if rng.random() < 0.9]
    numbers = _numbers(
        rng,
        bpm=pick(rng, ("the tempo is {} bpm", "tempo: {}", "{} beats per minute", "it goes at {} bpm")).format(
            facts.bpm
        ),
        key=pick(rng, ("it is in {}", "the key is {}", "key: {}", "in {}")).format(facts.key),
        metre="" if facts.metre == "4/4" else f"it is counted in {facts.metre}",
    )
    details += [numbers, [f"the mood is {_listed(_some(rng, facts.moods, 2))}"] * (rng.random() < 0.4)]
    if not any(role == "drums" for role, _ in facts.roles) and rng.random() < 0.4:
        details.append([pick(rng, ("there are no drums", "no percussion"))])
    order = rng.permutation(len(details))
    sentences = [opening.format(subject), *(f"{detail}." for i in order for detail in details[i])]
    return " ".join([sentences[0], *(sentence[0].upper() + sentence[1:] for sentence in sentences[1:])])


def _parts(facts: _Facts, rng: np.random.Generator) -> list[str]:
    """One to three sentences about the instruments of the roles."""
    roles: dict[str, list[str]] = {}
    for role, instrument in facts.roles:
        if instrument not in roles.setdefault(role, []):
            roles[role].append(instrument)
    sentences = []
    if "melody" in roles:
        sentences.append(
            pick(rng, ("the melody is played by the {}", "the tune is on the {}")).format(_listed(roles["melody"]))
        )
    backing = list(dict.fromkeys([*roles.get("chords", []), *roles.get("arpeggio", [])]))
    if backing:
        sentences.append(f"{_listed(backing)} {pick(rng, ('in the background', 'for harmony'))}")
    rhythm = list(dict.fromkeys([*roles.get("bass", []), *roles.get("drums", [])]))
    if rhythm:
        sentences.append(f"{_listed(rhythm)} {pick(rng, ('for the rhythm', 'underneath'))}")
    return sentences[: 1 + int(rng.integers(len(sentences)))]
