"""What a model remembers, drawn: time to the right, layers with their heads downwards.

The drawing is HTML with two pictures in it, in the page's own colours of ink, and transparent where nothing is, so that
it is right on white and on black. Pointing at a column says which token stands there.

Letters: T time, L layers, H heads.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from PIL import Image

from mm_rwkv7.remembering import Remembered
from mm_rwkv7.rwkv7 import DECAY_FLOOR

Values = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

ROW, GAP = 4, 3  # pixels of a head, and between layers
READABLE = 72  # so many tokens' texts have room below the maps
LABELS = 16  # layers that are labelled at most
LEAST = 1e-6  # a norm below is shown as this one

CSS = """
.maps { position: relative; padding-bottom: 1.8em; font-size: var(--text-sm); color: var(--body-text-color); }
.map { margin: 0 0 1em; }
.map figcaption { display: flex; flex-wrap: wrap; gap: 0.4em 1em; align-items: center; margin-bottom: 0.3em; }
.scale { display: flex; gap: 0.5em; align-items: center; margin-left: auto; font-variant-numeric: tabular-nums; }
.scale img { width: 8em; height: 0.8em; margin: 0; border-radius: 2px; }
.field { display: flex; height: clamp(110px, var(--rows) * 9px, 420px); }
.layers { width: 4.4em; flex: none; display: flex; flex-direction: column; color: var(--body-text-color-subdued); }
.layers span { flex: 1; display: flex; align-items: center; line-height: 1; }
.field img { flex: 1; min-width: 0; height: 100%; margin: 0; image-rendering: pixelated; border-radius: 2px; }
.columns { position: absolute; top: 0; right: 0; bottom: 0; left: 4.4em; display: flex; }
.column { flex: 1; min-width: 0; }
.column:hover { box-shadow: inset 0 0 0 1px var(--body-text-color); }
.column:hover::after { content: attr(data-token); position: absolute; left: 0; bottom: 0; white-space: pre; }
.tokens { display: flex; margin-left: 4.4em; min-height: 0.7em; color: var(--body-text-color-subdued); }
.tokens span { flex: 1; min-width: 0; overflow: hidden; white-space: pre; line-height: 1; max-height: 9em;
  border-top: 3px solid var(--border-color-primary); }
.tokens.words span { writing-mode: vertical-rl; padding-top: 0.3em; }
.tokens .medium { border-top-color: var(--color-accent); }
"""


@dataclass(frozen=True)
class Token:
    """What stands in a column: a token's text, or "picture" or "sound"."""

    text: str
    medium: bool = False


def draw(seen: Remembered, tokens: Sequence[Token]) -> str:
    """HTML for a component with `CSS`. `tokens` are those of the figures' T steps."""
    norms, decays = seen.norms.double().numpy(), seen.decays.double().numpy()
    if len(tokens) != len(norms):
        raise ValueError(f"{len(tokens)} tokens for the figures of {len(norms)} steps, expected one for each")
    norms = np.maximum(norms, LEAST)
    low, high = float(norms.min()), float(norms.max())
    floor = math.exp(DECAY_FLOOR)
    words = len(tokens) <= READABLE
    return "".join(
        (
            f'<div class="maps" style="--rows: {norms.shape[1] * norms.shape[2]}">',
            _map("Norm of the state (logarithmic)", "viridis", np.log(norms), (low, high), math.log),
            _map("Kept of it at each step (mean decay)", "cividis", decays, (floor, 1.0)),
            f'<div class="tokens{" words" * words}" aria-hidden="true">',
            *(f"<span{_marked(t)}>{escape(t.text) if words and not t.medium else ''}</span>" for t in tokens),
            '</div><div class="columns" aria-hidden="true">',
            *(f'<div class="column" data-token="{_told(number, t)}"></div>' for number, t in enumerate(tokens, 1)),
            "</div></div>",
        )
    )


def field(values: Values, colours: str, low: float, high: float) -> Image.Image:
    """values (T, L, H) -> a picture of T columns, a few rows for each head, and transparent ones between layers."""
    T, L, H = values.shape
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    painted = colormaps[colours](scaled.clip(0, 1).reshape(T, L * H).T, bytes=True)  # (L * H, T, RGBA)
    layers = painted.repeat(ROW, axis=0).reshape(L, H * ROW, T, 4)
    layers = np.pad(layers, ((0, 0), (0, GAP), (0, 0), (0, 0)))
    return Image.fromarray(layers.reshape(-1, T, 4)[:-GAP])


def number(value: float) -> str:
    """Three digits that count, and no exponent: 1,220 or 0.607 or 0.000001."""
    digits = 2 - math.floor(math.log10(value))
    return f"{value:,.{min(max(digits, 0), -math.floor(math.log10(LEAST)))}f}"


def _map(
    name: str, colours: str, values: Values, ends: tuple[float, float], scale: Callable[[float], float] = float
) -> str:
    """`ends` are the scale's, as they are told; `values` and they are compared after `scale`."""
    least, most = map(number, ends)
    low, high = map(scale, ends)
    L, H = values.shape[1:]
    step, layer, head = (int(i) for i in np.unravel_index(values.argmax(), values.shape))
    told = (
        f"{name}: {len(values)} tokens to the right, {L} layers of {H} heads downwards, from {least} to {most}; "
        f"the greatest is in layer {layer}, head {head}, at token {step + 1}"
    )
    every = -(-L // LABELS)
    labels = "".join(f"<span>{f'layer {i}' if i % every == 0 else ''}</span>" for i in range(L))
    bar = _data_uri(field(np.arange(256.0).reshape(-1, 1, 1), colours, 0, 255))
    return (
        f'<figure class="map"><figcaption><span>{name}</span>'
        f'<span class="scale">{least}<img src="{bar}" alt="from dark to bright">{most}</span></figcaption>'
        f'<div class="field"><div class="layers" aria-hidden="true">{labels}</div>'
        f'<img src="{_data_uri(field(values, colours, low, high))}" alt="{told}"></div></figure>'
    )


def _marked(token: Token) -> str:
    return ' class="medium"' if token.medium else ""


def _told(number: int, token: Token) -> str:
    shown = token.text if token.medium else repr(token.text)
    return escape(f"{number}: {shown}")


def _data_uri(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
