import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7 import checkpoint
from mm_rwkv7.hf import MMRWKV7Config, MMRWKV7ForConditionalGeneration, RecurrentCache
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.sources import BUNDLED

Inputs = Callable[..., dict[str, Tensor]]
QUESTIONS = (("What is in the picture?", [0, 1]), "Describe the picture.", ("a red square?", [2]))


@pytest.fixture(scope="module")
def saved(hf_model: MMRWKV7ForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    hf_model.save_pretrained(folder)
    return folder


def relative_error(found: Tensor, expected: Tensor) -> float:
    heard = expected > -500  # `tiny_model` lowers what it must not write by a constant 1000
    return float((found - expected)[heard].norm() / expected[heard].norm())


@torch.no_grad()
def test_logits_are_the_core_s(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs, tiny_model: MMRWKV7) -> None:
    """A padded batch with pictures against the core, each row by itself and without padding."""
    batch = inputs(*QUESTIONS)
    logits = hf_model(**batch).logits
    seen = 0
    for row, question in enumerate(QUESTIONS):
        alone = inputs(question)
        count = len(alone.get("pixel_values", ()))
        pixels = batch["pixel_values"][seen : seen + count] if count else None
        expected, _ = tiny_model(alone["input_ids"], pixels=pixels)
        assert relative_error(logits[row, -expected.shape[1] :], expected[0]) < 1e-5
        seen += count
    assert not batch["attention_mask"].all()
    assert relative_error(hf_model(**batch, logits_to_keep=1).logits, logits[:, -1:]) < 1e-5
    x = tiny_model.embed(batch["input_ids"], tiny_model.encode(batch["pixel_values"]))
    assert torch.equal(hf_model(inputs_embeds=x, attention_mask=batch["attention_mask"]).logits, logits)


@torch.no_grad()
def test_a_text_read_in_pieces(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs) -> None:
    batch = inputs(*QUESTIONS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    whole = hf_model(**batch).logits
    length = ids.shape[1]
    cache = RecurrentCache()
    first = hf_model(**{**batch, "input_ids": ids[:, :-9], "attention_mask": mask[:, :-9]}, past_key_values=cache)
    pieces = [first.logits]
    for start, end in ((length - 9, length - 4), (length - 4, length - 3), (length - 3, length)):
        output = hf_model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        assert output.past_key_values is cache
        assert cache.get_seq_length() == end
        pieces.append(output.logits)
    real = mask.bool()
    assert relative_error(torch.cat(pieces, 1)[real], whole[real]) < 1e-5


@torch.no_grad()
def test_a_cache_forks_and_keeps_its_state_a_value(hf_model: MMRWKV7ForConditionalGeneration) -> None:
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    cache = hf_model(ids).past_key_values
    kept = cache.state.map(torch.clone)
    fork = RecurrentCache(cache.state)
    hf_model(ids, past_key_values=cache)
    assert all(map(torch.equal, fork.state.layers[0], kept.layers[0]))
    assert (fork.get_seq_length(), cache.get_seq_length(), cache.batch_size) == (3, 6, 2)
    fork.batch_repeat_interleave(2)
    fork.reorder_cache(torch.tensor([3, 0]))
    assert torch.equal(fork.state.layers[1].wkv, kept.layers[1].wkv[[1, 0]])
    with pytest.raises(ValueError, match="cannot forget"):
        fork.crop(1)
    fork.reset()
    assert fork.get_seq_length() == 0
    assert not fork.is_initialized


def test_loss_is_the_next_token_s(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs) -> None:
    batch = inputs(QUESTIONS[0])
    labels = batch["input_ids"].clone()
    labels[:, :-6] = -100
    output = hf_model(**batch, labels=labels)
    expected = F.cross_entropy(output.logits[0, -7:-1], batch["input_ids"][0, -6:])
    assert relative_error(output.loss.detach(), expected.detach()) < 1e-6
    assert hf_model(**batch, labels=labels, return_dict=False)[0] == output.loss


def test_recomputed_blocks_give_the_same_gradients(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs) -> None:
    model = copy.deepcopy(hf_model).train()
    batch = inputs(QUESTIONS[0])
    calls = []
    model.model.lm.blocks[1].time_mix.register_forward_hook(lambda *_: calls.append(1))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        calls.clear()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, once = gradients(), len(calls)
    model.activation_checkpointing_enable()
    recomputed, twice = gradients(), len(calls)
    assert (once, twice) == (1, 2)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    model.activation_checkpointing_disable()
    gradients()
    assert len(calls) == 1


def test_a_tower_in_training_keeps_its_statistics(hf_model: MMRWKV7ForConditionalGeneration) -> None:
    model = copy.deepcopy(hf_model).train()
    assert model.model.lm.training
    assert not any(module.training for module in model.model.tower.modules())


def test_a_loaded_tower_is_frozen(saved: Path, tiny_checkpoint: Path) -> None:
    for model in (
        MMRWKV7ForConditionalGeneration.from_pretrained(saved),
        MMRWKV7ForConditionalGeneration.from_native(tiny_checkpoint),
    ):
        frozen = {name for name, parameter in model.model.named_parameters() if not parameter.requires_grad}
        assert frozen == {f"tower.{name}" for name, _ in model.model.tower.named_parameters()}


def test_a_saved_folder_holds_the_same_model(
    hf_model: MMRWKV7ForConditionalGeneration, saved: Path, tiny_checkpoint: Path
) -> None:
    loaded = MMRWKV7ForConditionalGeneration.from_pretrained(saved)
    assert loaded.config.core == hf_model.config.core
    assert_same_tensors(loaded.model, hf_model.model)
    assert loaded.generation_config.to_dict() == hf_model.generation_config.to_dict()
    narrow = MMRWKV7ForConditionalGeneration.from_pretrained(saved, dtype=torch.bfloat16)
    assert_same_tensors(narrow.model, checkpoint.load(tiny_checkpoint, torch.bfloat16))
    names = [file.name for file in saved.iterdir()]
    assert sum(name.endswith(".safetensors") for name in names) == 1


def assert_same_tensors(found: MMRWKV7, expected: MMRWKV7) -> None:
    for kind in ("named_parameters", "named_buffers"):  # the buffers that no checkpoint holds, too
        ours, theirs = dict(getattr(found, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name


def test_native_folders_come_and_go_bit_by_bit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    MMRWKV7ForConditionalGeneration.from_native(tiny_checkpoint).save_pretrained(tmp_path / "hf")
    MMRWKV7ForConditionalGeneration.from_pretrained(tmp_path / "hf").to_native(tmp_path / "native", "# tiny\n")
    for name in ("config.json", "README.md"):
        assert (tmp_path / "native" / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "native", tiny_checkpoint))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_model_stored_in_several_types_is_not_rounded(tmp_path: Path) -> None:
    core = checkpoint.build(open_checkpoint(BUNDLED["nano"]), None)
    assert {tensor.dtype for tensor in core.parameters()} == {torch.float16, torch.float32}
    MMRWKV7ForConditionalGeneration.from_core(core).save_pretrained(tmp_path)
    loaded = MMRWKV7ForConditionalGeneration.from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in core.state_dict().items())
    assert {tensor.dtype for tensor in loaded.values() if tensor.is_floating_point()} == {torch.float32}
    narrow = checkpoint.load(BUNDLED["nano"], torch.bfloat16)
    assert MMRWKV7ForConditionalGeneration.from_core(narrow).config.dtype == torch.bfloat16


@pytest.mark.parametrize("problem", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_refused(saved: Path, tmp_path: Path, problem: str) -> None:
    name = "model.lm.blocks.1.time_mix.w0"
    tensors = load_file(saved / "model.safetensors")
    if problem == "unexpected":
        name = "model.lm.blocks.1.time_mix.w9"
        tensors[name] = torch.zeros(3)
    elif problem == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][1:].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(ValueError, match=f"{problem} .*{re.escape(name)}"):
        MMRWKV7ForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights load strictly"):
        MMRWKV7ForConditionalGeneration.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_a_fresh_model_is_initialised() -> None:
    lm = {"vocab_size": 65536, "width": 64, "layers": 2}
    torch.manual_seed(0)
    model = MMRWKV7ForConditionalGeneration(MMRWKV7Config(native={"lm": lm}))
    assert model.model.lm.head.weight.isfinite().all()
    assert (model.model.lm.blocks[0].time_mix.k_a == 1.02).all()
    with pytest.raises(ValueError, match="no tower"):
        model(torch.tensor([[1, 2]]), pixel_values=torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_broken_config_is_named(saved: Path, tmp_path: Path) -> None:
    fields = json.loads((saved / "config.json").read_text("utf-8"))
    fields["native"]["lm"]["width"] = "wide"
    (tmp_path / "config.json").write_text(json.dumps(fields), "utf-8")
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"native\.lm\.width is 'wide'"):
        MMRWKV7ForConditionalGeneration.from_pretrained(tmp_path)


def test_bad_inputs_are_refused(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs) -> None:
    from transformers import DynamicCache

    ids = torch.tensor([[3, 4, 5]])
    x = hf_model.get_input_embeddings()(ids)
    pixels = inputs(QUESTIONS[0])["pixel_values"]
    with pytest.raises(ValueError, match="got both or neither"):
        hf_model()
    with pytest.raises(ValueError, match="got both or neither"):
        hf_model(ids, inputs_embeds=x)
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        hf_model(inputs_embeds=x, pixel_values=pixels)
    with pytest.raises(ValueError, match=r"pixel_values are torch\.float32, expected uint8"):
        hf_model(**{**inputs(QUESTIONS[0]), "pixel_values": pixels / 255})
    with pytest.raises(ValueError, match="0 image placeholders"):
        hf_model(ids, pixel_values=pixels)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 2\), expected \(B, 3 or more\)"):
        hf_model(ids, attention_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="is a DynamicCache, expected a RecurrentCache"):
        hf_model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="the vocabulary is fixed"):
        hf_model.resize_token_embeddings(7)


def test_a_save_that_fails_leaves_what_was_there(
    hf_model: MMRWKV7ForConditionalGeneration, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "optimizer.pt").write_text("a trainer's")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(MMRWKV7Config, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        hf_model.save_pretrained(folder)
    state = hf_model.state_dict()
    for wrong in (dict(list(state.items())[1:]), state | {"model.lm.head.weight": torch.zeros(2, 2)}):
        with pytest.raises(ValueError, match="1 tensors are not those of the config"):
            hf_model.save_pretrained(folder, state_dict=wrong)
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        hf_model.save_pretrained(folder / "optimizer.pt")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_is_saved_over_the_folder_that_it_was_loaded_from(
    hf_model: MMRWKV7ForConditionalGeneration, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "optimizer.pt").write_text("a trainer's")
    hf_model.save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert not (folder / "model.safetensors").exists()
    loaded = MMRWKV7ForConditionalGeneration.from_pretrained(folder)  # in shards, memory-mapped
    loaded.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(p.name for p in saved.iterdir()), "optimizer.pt"]
    )
    again = MMRWKV7ForConditionalGeneration.from_pretrained(folder).state_dict()
    for name, tensor in hf_model.state_dict().items():
        assert torch.equal(tensor, again[name]), name
