"""MMRWKV7 as a transformers model: forward, save and load. All computing is the core's.

Letters: B batch, T time, I pictures, S side of a prepared picture, D width, V vocabulary, K logits kept.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.hf.cache import RecurrentCache
from mm_rwkv7.hf.configuration import MMRWKV7Config, check_tokenizer
from mm_rwkv7.hf.generation import PictureGenerationMixin, generation_config
from mm_rwkv7.hf.remote import Remote
from mm_rwkv7.hf.saving import merging
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.replaceable import check_native
from mm_rwkv7.sources import locate
from mm_rwkv7.weights import cast_weight


class MMRWKV7ForConditionalGeneration(Remote, PictureGenerationMixin, PreTrainedModel):
    """`model` is the core, an `MMRWKV7`, with or without a tower; its state travels in a `RecurrentCache`."""

    config_class = MMRWKV7Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: MMRWKV7Config, core: MMRWKV7 | None = None) -> None:
        check_tokenizer(config.core)
        super().__init__(config)
        self.model = _build(config.core) if core is None else core
        self.generation_config = generation_config(config.core)
        self.post_init()

    @classmethod
    def from_core(cls, core: MMRWKV7) -> "MMRWKV7ForConditionalGeneration":
        """Wrap a model; its tensors are shared, not copied."""
        model = cls(MMRWKV7Config.from_core(core.config), core)
        model.config.dtype = model.dtype
        return model.train(core.training)

    @classmethod
    def from_native(
        cls, model: str | os.PathLike[str], dtype: torch.dtype = torch.float32
    ) -> "MMRWKV7ForConditionalGeneration":
        """Load a native checkpoint: "nano", "hf:owner/repo" or a folder. The tower is frozen."""
        return cls.from_core(checkpoint.load(locate(model), dtype))._freeze_tower()

    def to_native(self, folder: str | os.PathLike[str], card: str, dtype: torch.dtype | None = None) -> None:
        """Write the core as a native checkpoint with this model card; with `dtype`, matrices are stored in it.
        A ValueError says when adapters are not merged, or `folder` holds anything but a native checkpoint."""
        check_native(Path(folder))
        if any(".base_layer." in name for name in self.model.state_dict()):
            raise ValueError("the model has adapters: merge the adapters first")
        checkpoint.save(self.model, folder, card, dtype)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers does it, but strictly: a ValueError lists what is missing, unexpected or misshapen. The
        tower is frozen."""
        if "ignore_mismatched_sizes" in kwargs:
            raise ValueError("weights load strictly: ignore_mismatched_sizes is not for this model")
        # Ignored there, so that they are listed with the others here.
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        model, info = loaded
        problems = ("missing", "unexpected", "mismatched")
        wrong = {problem: sorted(map(str, info[f"{problem}_keys"])) for problem in problems}
        if any(wrong.values()):
            listed = "; ".join(f"{problem} {', '.join(keys)}" for problem, keys in wrong.items() if keys)
            raise ValueError(f"{model.name_or_path} does not fit its config: {listed}")
        model._freeze_tower()
        return (model, info) if output_loading_info else model

    def _freeze_tower(self) -> Self:
        if self.model.tower is not None:
            self.model.tower.requires_grad_(False)
        return self

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As transformers does it, but a save that fails leaves the folder as it was. A ValueError says when the folder
        could not be loaded again, as with adapters that are not merged."""
        if kwargs.get("distributed_checkpoint"):
            raise ValueError("distributed_checkpoint is not for this model: save its safetensors")
        if not getattr(self, "_hf_peft_config_loaded", False):  # then transformers saves adapters alone
            self._check_whole(self.state_dict() if state_dict is None else state_dict)
        if push_to_hub:  # under the name of the folder, as transformers does
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with merging(Path(save_directory)) as draft:
            super().save_pretrained(draft, is_main_process, state_dict, push_to_hub, *args, **kwargs)

    def _check_whole(self, tensors: dict[str, Tensor]) -> None:
        with torch.device("meta"):
            wanted = {f"model.{name}": t.shape for name, t in MMRWKV7(self.config.core).state_dict().items()}
        given = {name: tensor.shape for name, tensor in tensors.items()}
        if wrong := sorted({name for name, _ in wanted.items() ^ given.items()}):
            adapted = ": merge the adapters first" if any(".base_layer." in name for name in wrong) else ""
            raise ValueError(f"{len(wrong)} tensors are not those of the config, such as {wrong[0]}{adapted}")

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: transformers goes module by module, the reference trainer's start is the whole model's."""

    def _move_missing_keys_from_meta_to_device(self, *args: Any, **kwargs: Any) -> None:
        # Transformers empties the buffers that no checkpoint holds; a tower is built with their values.
        built = {name: buffer for name, buffer in self.named_non_persistent_buffers() if not buffer.is_meta}
        super()._move_missing_keys_from_meta_to_device(*args, **kwargs)
        for name, buffer in built.items():
            self.get_buffer(name).copy_(buffer)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = recompute,
        every_n_layers: int = 1,
    ) -> None:
        self.gradient_checkpointing = enable
        for number, block in enumerate(self.model.lm.blocks):
            plain = partial(type(block).forward, block)
            recomputed = enable and number % every_n_layers == 0
            block.forward = partial(gradient_checkpointing_func, plain) if recomputed else plain

    def train(self, mode: bool = True) -> "MMRWKV7ForConditionalGeneration":
        """The tower stays as in evaluation: it is frozen, its running statistics too."""
        super().train(mode)
        if self.model.tower is not None:
            self.model.tower.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type that transformers writes into a config and loads all tensors in: fp32 where several are stored,
        so that none is rounded."""
        kinds = {
            tensor.dtype
            for name, tensor in self.model.state_dict().items()
            if tensor.is_floating_point() and not name.endswith(".w0")
        }
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def get_input_embeddings(self) -> nn.Module:
        return self.model.lm.emb

    def get_output_embeddings(self) -> nn.Module:
        return self.model.lm.head

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refused: the rows are those of the World vocabulary, or of the config's choice from it."""
        raise ValueError("the vocabulary is fixed: its rows are World ids, which cannot be added to")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: RecurrentCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """input_ids (B, T), or inputs_embeds (B, T, D); attention_mask (B, T or more), 0 where padded, of which the
        last T count; pixel_values (I, 3, S, S) uint8 of the placeholders' pictures in order; labels (B, T), -100 where
        nothing is to be learned -> loss, logits (B, T, V) or (B, K, V) fp32, past_key_values.

        A cache that was given is advanced. Without `use_cache` one is made outside training.
        """
        if input_ids is not None and inputs_embeds is None:
            if pixel_values is not None and pixel_values.dtype != torch.uint8:
                raise ValueError(f"pixel_values are {pixel_values.dtype}, expected uint8, which the tower normalises")
            features = None if pixel_values is None else self.model.encode(pixel_values)
            inputs_embeds = self.model.embed(input_ids, features)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("expected either input_ids or inputs_embeds, got both or neither")
        elif pixel_values is not None:
            raise ValueError("pixel_values need input_ids, whose placeholders they replace")
        if past_key_values is None and (not self.training if use_cache is None else use_cache):
            past_key_values = RecurrentCache()
        if past_key_values is not None and not isinstance(past_key_values, RecurrentCache):
            raise ValueError(f"past_key_values is a {type(past_key_values).__name__}, expected a RecurrentCache")
        state = None if past_key_values is None else past_key_values.state
        mask = _core_mask(attention_mask, inputs_embeds.shape[1])
        hidden, state = self.model.lm.hidden(inputs_embeds, state, mask)
        if past_key_values is not None:
            past_key_values.state = state
        logits = self.model.lm.head(hidden[:, -logits_to_keep:]).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output


def _core_mask(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """The core's mask (B, T) of the last `length` steps; None where nothing is padded."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[1] < length:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected (B, {length} or more)")
    mask = attention_mask[:, -length:].bool()
    return None if mask.all() else mask


def _build(core: MMConfig) -> MMRWKV7:
    """A fresh model in the default dtype, which transformers sets to the wanted one. As in `checkpoint.load`, the
    decay's offsets and the buffers that no checkpoint holds stay in fp32."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        model = MMRWKV7(core)
    finally:
        torch.set_default_dtype(dtype)
    if not model.lm.emb.weight.is_meta:
        initialise(model.lm)
    tensors = {name: cast_weight(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    return model
