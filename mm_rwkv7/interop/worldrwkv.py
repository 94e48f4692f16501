"""WorldRWKV (ModRWKV) with a SigLIP2 tower, in its three generations, or one that hears (`worldrwkv_sound`).

1. March to July 2025: flat BlinkDL names and `modality.world_encoder.`; a picture's features stand before the text.
2. From August 2025: `llm.`, `proj.`, `encoder.`; the features replace placeholders between two marks.
3. The same as Hugging Face transformers saves it (`rwkv7_vl`), the language model under fla's names.

The tower is in the file only where it was trained; those weights then are the ones to use.
"""

from functools import partial

from mm_rwkv7.config import MMConfig, PromptTemplate
from mm_rwkv7.interop import fla, worldrwkv_sound
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.parts import Part, Shapes, assemble, blinkdl_part, renamed_part
from mm_rwkv7.interop.siglip import BASE, siglip_config, siglip_part
from mm_rwkv7.projector import AdapterProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config

PUBLISHED = "google/siglip2-base-patch16-384"
MOST_TOKENS = 500  # of an answer, in the project's inference code
FIRST = "modality.world_encoder."
THIRD = "model."

# The releases of March 2025. Later ones of the first generation were trained with "\x16Assistant:": the files do not
# say which, so a converted checkpoint's config.json is the place to change it.
FIRST_TEMPLATE = PromptTemplate(
    system="\x16System: ",
    user="\x16User: ",
    assistant="Assistant:",
    turn_end="\x17",
    image="{image}",
    audio="{audio}",
    images_first=True,
    stop=("\x17",),
)
TEMPLATE = PromptTemplate(
    system="\x16System:",
    user="\x16User:",
    assistant="\x16Assistant:",
    turn_end="\x17",
    image="{image}",
    audio="{audio}",
    stop=("\x17",),
    answer="",
    image_start=65530,
    image_end=65531,
)


def recognises(stored: Stored) -> bool:
    return _generation(stored) is not None


def open_stored(stored: Stored) -> Checkpoint:
    generation = _generation(stored)
    shapes = Shapes(stored)
    if generation == 1:
        lm = blinkdl_part(stored.tensors, "", "lm.")
        adapter, vision, perceptron = f"{FIRST}adapter.", f"{FIRST}model.", "proj."
        if worldrwkv_sound.hears(shapes, adapter):
            return _open_hearing(shapes, lm, adapter, vision)
    elif generation == 2:
        lm = blinkdl_part(stored.tensors, "llm.", "lm.")
        adapter, vision, perceptron = "proj.", "encoder.model.", "mlp."
    else:
        lm = _fla_part(stored)
        adapter, vision, perceptron = f"{THIRD}proj.", f"{THIRD}encoder.model.", "mlp."
    projector = _projector(shapes, adapter, perceptron)
    if not shapes.holds(vision) and projector.input_width != BASE["hidden_size"]:
        raise ValueError(
            f"{stored.path} leaves out an encoder of width {projector.input_width} (CLIP, perhaps), "
            f"expected SigLIP2's {BASE['hidden_size']}"
        )
    config = MMConfig(
        _lm_config(stored, lm),
        siglip_config(shapes, vision, PUBLISHED),
        projector,
        template=FIRST_TEMPLATE if generation == 1 else TEMPLATE,
        max_new_tokens=MOST_TOKENS,
    )
    ours, theirs = partial(_swap, old=perceptron, new="mlp."), partial(_swap, old="mlp.", new=perceptron)
    parts = [lm, renamed_part(stored.tensors, adapter, "projector.", ours, theirs), siglip_part(shapes, vision)]
    return assemble(f"WorldRWKV generation {generation}", config, parts, stored)


def _open_hearing(shapes: Shapes, lm: Part, adapter: str, encoder: str) -> Checkpoint:
    config = MMConfig(
        _lm_config(shapes.stored, lm),
        template=worldrwkv_sound.template(FIRST_TEMPLATE),
        max_new_tokens=MOST_TOKENS,
        sound=worldrwkv_sound.sound_config(shapes, adapter, encoder),
    )
    parts = [lm, *worldrwkv_sound.sound_parts(shapes, adapter, encoder)]
    return assemble("WorldRWKV generation 1, hearing", config, parts, shapes.stored)


def _lm_config(stored: Stored, lm: Part) -> RWKV7Config:
    return RWKV7Config.of({name: tensor.shape for name, tensor in lm.tensors.items()}, stored.path, lm.spell)


def _generation(stored: Stored) -> int | None:
    for generation, mark in enumerate((FIRST, "llm.", f"{THIRD}llm."), start=1):
        if any(name.startswith(mark) for name in stored.tensors):
            return generation
    return None


def _fla_part(stored: Stored) -> Part:
    prefix = f"{THIRD}llm."
    holds, spell = partial(fla.holds, prefix=prefix), partial(fla.spell, prefix=prefix)
    return Part("lm.", fla.ours(stored.tensors, prefix), spell, holds)


def _projector(shapes: Shapes, adapter: str, perceptron: str) -> AdapterProjectorConfig:
    hidden, width = shapes.of(f"{adapter}{perceptron}0.weight", 2)
    return AdapterProjectorConfig(width, hidden, convolution=f"{adapter}conv.weight" in shapes.stored.tensors)


def _swap(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name
