"""The styles of synthetic music by name."""

from mgjax.synthetic.styles import electronic, popular, traditional

STYLES = {style.name: style for style in (*popular.STYLES, *electronic.STYLES, *traditional.STYLES)}
