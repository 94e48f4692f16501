"""Where the tasks are: name -> module and the class or function that makes it. Imported on use."""

from importlib import import_module

from eval.task import Task

TASKS = {
    "scenes": "eval.tasks.scenes:Scenes",
    "soundscapes": "eval.tasks.soundscapes:Soundscapes",
    "vqav2": "eval.tasks.vqav2:Val",
    "vqav2_test_dev": "eval.tasks.vqav2:TestDev",
    "vqav2_test_std": "eval.tasks.vqav2:TestStandard",
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
