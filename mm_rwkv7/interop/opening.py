"""The one way into a checkpoint of any format, which is told by the names of its tensors."""

from pathlib import Path

from mm_rwkv7.interop import hf, native, text, visualrwkv, worldrwkv
from mm_rwkv7.interop.files import Stored, read
from mm_rwkv7.interop.format import Checkpoint, Format
from mm_rwkv7.interop.language import refuse_variants, unrecognised
from mm_rwkv7.interop.taggers import tagger_format

# The first that recognises a file opens it: a model that sees also holds what is recognised as a language model.
FORMATS: tuple[Format, ...] = (native, hf, visualrwkv, worldrwkv, text)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a file or folder without reading its weights. A ValueError says what the file is instead, where it is no
    RWKV-7 that is known here."""
    return open_stored(read(path))


def open_stored(stored: Stored) -> Checkpoint:
    """The same for a file that has been read."""
    if (tagger := tagger_format(stored)) is not None:
        raise ValueError(
            f"{stored.path} is a tagger of sounds ({tagger.FORMAT}), `mm-rwkv7 tag` is for it: it has no words"
        )
    refuse_variants(stored)
    for candidate in FORMATS:
        if candidate.recognises(stored):
            return candidate.open_stored(stored)
    raise unrecognised(stored)
