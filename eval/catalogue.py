"""Where the tasks are: name -> module and the class or function that makes it. Imported on use."""

from importlib import import_module

from eval.task import Task

TASKS = {
    "scenes": "eval.tasks.scenes:Scenes",
    "soundscapes": "eval.tasks.soundscapes:Soundscapes",
    "vqav2": "eval.tasks.vqav2:Val",
    "vqav2_test_dev": "eval.tasks.vqav2:TestDev",
    "vqav2_test_std": "eval.tasks.vqav2:TestStandard",
    "audiocaps": "eval.tasks.audiocaps:AudioCaps",
    "audioset": "eval.tasks.audioset:Head",
    "audioset_embedding": "eval.tasks.audioset:Embedding",
    "audioset_likelihood": "eval.tasks.audioset:Likelihood",
    "clotho": "eval.tasks.clotho:Clotho",
    "clothoaqa": "eval.tasks.clothoaqa:ClothoAQA",
    "esc10": "eval.tasks.esc:Esc10",
    "esc10_head": "eval.tasks.esc:Esc10Head",
    "esc10_likelihood": "eval.tasks.esc:Esc10Likelihood",
    "esc50": "eval.tasks.esc:Esc50",
    "esc50_head": "eval.tasks.esc:Esc50Head",
    "esc50_likelihood": "eval.tasks.esc:Esc50Likelihood",
    "lambada": "eval.tasks.lambada:Lambada",
    "lambada_standard": "eval.tasks.lambada:Standard",
    "mmau": "eval.tasks.mmau:Mmau",
    "mmau_likelihood": "eval.tasks.mmau:MmauLikelihood",
    "needle": "eval.tasks.needle:Needle",
    "perplexity": "eval.tasks.perplexity:Perplexity",
    "perplexity_strided": "eval.tasks.perplexity:Strided",
    "recall": "eval.tasks.recall:Recall",
    "coco": "eval.tasks.coco:Karpathy",
    "coco_test2014": "eval.tasks.coco:Test2014",
    "coco_val2014": "eval.tasks.coco:Val2014",
    "docvqa": "eval.tasks.docvqa:Val",
    "docvqa_test": "eval.tasks.docvqa:Test",
    "gqa": "eval.tasks.gqa:TestDev",
    "gqa_val": "eval.tasks.gqa:Val",
    "gqa_val_all": "eval.tasks.gqa:ValAll",
    "pope": "eval.tasks.pope:Pope",
    "scienceqa": "eval.tasks.scienceqa:TestImages",
    "textvqa": "eval.tasks.textvqa:Val",
    "textvqa_ocr": "eval.tasks.textvqa:ValOcr",
    "textvqa_test": "eval.tasks.textvqa:Test",
    "textvqa_test_ocr": "eval.tasks.textvqa:TestOcr",
    "vizwiz": "eval.tasks.vizwiz:Val",
    "vizwiz_test": "eval.tasks.vizwiz:Test",
}


def open_task(name: str) -> Task:
    """The task of that name; a ValueError lists those that there are."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}, expected one of {', '.join(sorted(TASKS))}")
    module, _, maker = TASKS[name].partition(":")
    task: Task = getattr(import_module(module), maker)()
    return task
