"""Where the tasks are: name -> module and the class or function that makes it. Imported on use."""

from importlib import import_module

from eval.task import Task

TASKS = {
    "scenes": "eval.tasks.scenes:Scenes",
    "soundscapes": "eval.tasks.soundscapes:Soundscapes",
    "vqav2": "eval.tasks.vqav2:Val",
    "vqav2_test_dev": "eval.tasks.vqav2:TestDev",
    "vqav2_test_std": "eval.tasks.vqav2:TestStandard",
}


def open_task(name: str) -> Task:
    """The task of that name; a ValueError lists those that there are."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}, expected one of {', '.join(sorted(TASKS))}")
    module, _, maker = TASKS[name].partition(":")
    task: Task = getattr(import_module(module), maker)()
    return task
