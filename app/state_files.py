"""States as the bytes of their files, and back: the one check of what strangers bring."""

import tempfile
from pathlib import Path

from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import State

HEADER = 1 << 20  # bytes of a state file besides its tensors
MOST_TOKENS = 1 << 53


def dump(state: State) -> bytes:
    """A state as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        state.save(path)
        return path.read_bytes()


def load(data: bytes, pipeline: Pipeline) -> State:
    """The state in a file's bytes. ValueError unless it is a whole one of this very model, all of it numbers."""
    expected = state_bytes(pipeline)
    if len(data) > 2 * expected + HEADER:  # shifts may have been stored with more digits than the model's
        raise ValueError(f"the file has {len(data)} bytes, and a state of this model takes {expected}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        path.write_bytes(data)
        try:
            state = State.load(path, pipeline.fingerprint)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the file")) from error
    _check(state, pipeline.model.lm)
    return pipeline.sign(state, state.open_turn)


def state_bytes(pipeline: Pipeline) -> int:
    """What the state of one text takes."""
    return sum(tensor.nbytes for layer in pipeline.model.lm.initial_state().layers for tensor in layer)


def _check(state: State, lm: RWKV7) -> None:
    """What `State.load` does not know: this model's sizes, and that every number is one."""
    for i, (layer, expected) in enumerate(zip(state.layers, lm.initial_state().layers, strict=False)):
        for name, tensor, known in zip(layer._fields, layer, expected, strict=True):
            if tensor.shape != known.shape or not tensor.is_floating_point():
                raise ValueError(f"the file's {name} of layer {i} is {tensor.dtype} {tuple(tensor.shape)}")
            if not tensor.isfinite().all():
                raise ValueError(f"the file's {name} of layer {i} holds what is no number")
    lm.check_state(state, 1)
    if not 0 <= state.tokens_seen < MOST_TOKENS:
        raise ValueError("the file says that it has read more tokens than there are")
