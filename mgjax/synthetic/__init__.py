"""An endless, seeded source of captioned music, for demonstrations and tests.

Pieces are composed from chord progressions, bass, melody and drums (`composition`) in several styles (`styles`),
rendered with a General MIDI soundfont (`rendering`) and captioned in many wordings (`captions`). Rendering needs the
extra `synthetic`; composing does not.
"""

from mgjax.synthetic.folder import Summary, write_folder
from mgjax.synthetic.pieces import Composition, compose, render
from mgjax.synthetic.styles import STYLES

__all__ = ["STYLES", "Composition", "Summary", "compose", "render", "write_folder"]
