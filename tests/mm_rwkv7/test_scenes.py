import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations

import pytest

from mm_rwkv7.synthetic.objects import RGB
from mm_rwkv7.synthetic.scenes import COLOURS, KINDS, PLACES, SIZES, TEXTURES, WORDS, Object, Scene, sample

AXES = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
SIDE = "|".join(AXES)
FIELDS = {"colour": COLOURS, "size": SIZES, "texture": TEXTURES}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample(seed, size=48) for seed in range(2000)]


def matching(phrase: str, objects: tuple[Object, ...]) -> list[Object]:
    """The objects that a phrase such as "small red circles" or "striped shape" fits, read word by word."""
    words = phrase.split()
    is_text = words[-1] in ("number", "word")
    found = [item for item in objects if (item.text is not None) == is_text]
    for word in words:
        if is_text and word == words[-1]:
            found = [item for item in found if item.kind == word]
        elif word in ("shape", "shapes"):
            continue
        elif kind := next((kind for kind in KINDS if word in (kind, kind + "s", kind + "es")), None):
            found = [item for item in found if item.kind == kind]
        else:
            field = next(field for field, values in FIELDS.items() if word in values)
            found = [item for item in found if getattr(item, field) == word]
    return found


def the(phrase: str, objects: tuple[Object, ...]) -> Object:
    found = matching(phrase, objects)
    assert len(found) == 1, f"{phrase!r} fits {len(found)} objects"
    return found[0]


def answer_count(question: str, scene: Scene) -> str:
    phrase = re.search(r"(?:How many|Count the) (.+?)(?: are| can|\.)", question)
    assert phrase is not None
    return str(len(matching(phrase[1], scene.objects)))


def answer_exists(question: str, scene: Scene) -> str:
    phrase = re.search(r"\ban? (.+?)(?: in the picture)?\?", question)
    assert phrase is not None
    return "yes" if matching(phrase[1], scene.objects) else "no"


def answer_relation(question: str, scene: Scene) -> str:
    parts = re.search(rf"the (.+?) (?:lie |be found )?({SIDE}) the (.+)\?", question)
    assert parts is not None
    axis, sign = AXES[parts[2]]
    one, other = the(parts[1], scene.objects), the(parts[3], scene.objects)
    offset = sign * (getattr(one, axis) - getattr(other, axis))
    assert abs(offset) >= 0.12
    return "yes" if offset > 0 else "no"


def answer_neighbour(question: str, scene: Scene) -> str:
    parts = re.search(rf"({SIDE}) the (.+)\?", question)
    assert parts is not None
    axis, sign = AXES[parts[1]]
    target = the(parts[2], scene.objects)
    (there,) = [item for item in scene.objects if sign * (getattr(item, axis) - getattr(target, axis)) > 0]
    return f"{there.colour} {there.kind}"


def answer_place(question: str, scene: Scene) -> str:
    phrase = re.search(r"(?:is|holds) the (.+)\?", question)
    assert phrase is not None
    item = the(phrase[1], scene.objects)
    row = ("top", "", "bottom")[(item.y > 1 / 3) + (item.y > 2 / 3)]
    column = ("left", "", "right")[(item.x > 1 / 3) + (item.x > 2 / 3)]
    return f"{row} {column}".strip() or "center"


def answer_compare(question: str, scene: Scene) -> str:
    if parts := re.search(r"the (.+?)(?: is| look)? (larger|smaller) than the (.+)\?", question):
        one, other = the(parts[1], scene.objects), the(parts[3], scene.objects)
        return "yes" if (one.radius > other.radius) == (parts[2] == "larger") else "no"
    if parts := re.search(r"(more|fewer) (.+) than (.+)\?", question):
        many, few = (len(matching(parts[i], scene.objects)) for i in (2, 3))
        assert many != few
        return "yes" if (many > few) == (parts[1] == "more") else "no"
    pair = re.search(r"(\w+) or (\w+)\?", question)
    assert pair is not None
    first, second = (len(matching(pair[i], scene.objects)) for i in (1, 2))
    assert first != second
    return pair[1] if first > second else pair[2]


def answer_outermost(question: str, scene: Scene) -> str:
    shapes = [item for item in scene.objects if item.text is None]
    key, sign = next(
        v
        for k, v in {"left": ("x", -1), "right": ("x", 1), "top": ("y", -1), "bottom": ("y", 1)}.items()
        if k + "most" in question
    )
    item = max(shapes, key=lambda shape: sign * getattr(shape, key))
    return f"{item.colour} {item.kind}"


def answer_attribute(field: str, question: str, scene: Scene) -> str:
    phrase = re.search(
        r"(?:the|Name the) ((?:\w+ )*?\w+)(?: have| small or large| large or small| plain,.*| filled)?[?.]",
        question.removeprefix("Tell me the color of "),
    )
    assert phrase is not None
    return str(getattr(the(phrase[1], scene.objects), field))


def expected(question: str, kind: str, scene: Scene) -> str:
    if kind in ("colour", "shape", "size", "texture"):
        return answer_attribute("kind" if kind == "shape" else kind, question, scene)
    if kind == "text":
        return next(item.text for item in scene.objects if item.text is not None)
    if kind == "background":
        return scene.background
    readers = {
        "count": answer_count,
        "exists": answer_exists,
        "relation": answer_relation,
        "neighbour": answer_neighbour,
        "place": answer_place,
        "compare": answer_compare,
        "outermost": answer_outermost,
    }
    return readers[kind](question, scene)


def test_every_answer_is_true(scenes: list[Scene]) -> None:
    wrong = [
        (seed, question, answer)
        for seed, scene in enumerate(scenes)
        for question, answer, kind in scene.qa
        if answer != expected(question, kind, scene)
    ]
    assert wrong == []


def test_every_scene_has_several_different_questions(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert 6 <= len(scene.qa) <= 8
        assert len({question for question, _, _ in scene.qa}) == len(scene.qa)
    kinds = [len({kind for _, _, kind in scene.qa}) for scene in scenes]
    assert min(kinds) >= 3
    assert sum(kinds) / len(kinds) > 6


def test_yes_and_no_are_balanced_for_each_kind_and_first_words(scenes: list[Scene]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for scene in scenes:
        for question, answer, kind in scene.qa:
            if answer in ("yes", "no"):
                answers[kind][answer] += 1
                answers[f"{kind}: {' '.join(question.split()[:2])}"][answer] += 1
    for name, counts in answers.items():
        if counts.total() >= 200:
            assert max(counts.values()) / counts.total() < 0.6, f"{name}: {counts}"
    assert {"exists", "relation", "compare"} <= answers.keys()


def test_words_of_an_exists_question_do_not_tell_its_answer(scenes: list[Scene]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for scene in scenes:
        for question, answer, kind in scene.qa:
            if kind == "exists":
                for word in set(re.findall(r"\w+", question)):
                    answers[word][answer] += 1
    for word, counts in answers.items():
        if counts.total() >= 100:
            assert max(counts.values()) / counts.total() < 0.66, f"{word}: {counts}"


@pytest.mark.parametrize(
    ("kind", "share"),
    [("count", 0.25), ("colour", 0.2), ("shape", 0.2), ("size", 0.6), ("texture", 0.45), ("place", 0.2),
     ("background", 0.15), ("neighbour", 0.1), ("outermost", 0.1), ("text", 0.1)],
)  # fmt: skip
def test_the_commonest_answer_is_not_common(scenes: list[Scene], kind: str, share: float) -> None:
    counts = Counter(answer for scene in scenes for _, answer, k in scene.qa if k == kind)
    assert counts.total() > 400
    assert max(counts.values()) / counts.total() < share, counts


def test_objects_are_few_and_from_the_vocabulary(scenes: list[Scene]) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 8
        assert sum(item.text is not None for item in scene.objects) <= 1
        for item in scene.objects:
            seen["colour"].add(item.colour)
            seen["size"].add(item.size)
            if item.text is None:
                seen["kind"].add(item.kind)
                seen["texture"].add(item.texture)
            else:
                seen[item.kind].add(item.text)
    assert (seen["kind"], seen["colour"]) == (set(KINDS), set(COLOURS))
    assert (seen["size"], seen["texture"]) == (set(SIZES), set(TEXTURES))
    assert seen["word"] == set(WORDS)
    assert seen["number"] <= {str(n) for n in range(100)}


def test_objects_keep_apart_and_inside(scenes: list[Scene]) -> None:
    pixel = 1 / 96
    for scene in scenes:
        for item in scene.objects:
            assert item.half_width <= item.x <= 1 - item.half_width
            assert item.half_height <= item.y <= 1 - item.half_height
        for one, other in combinations(scene.objects, 2):
            slack = sum(item.half_width - item.half_height for item in (one, other))
            across = max(abs(one.x - other.x) - slack, 0)
            gap = (across**2 + (one.y - other.y) ** 2) ** 0.5 - one.half_height - other.half_height
            assert gap >= pixel


def test_large_is_clearly_larger_than_small(scenes: list[Scene]) -> None:
    shapes = [item for scene in scenes for item in scene.objects if item.text is None]
    largest_small = max(item.radius for item in shapes if item.size == "small")
    assert min(item.radius for item in shapes if item.size == "large") > 1.5 * largest_small


def test_plain_shapes_show_their_colour_and_stand_out() -> None:
    checked = 0
    for seed in range(200):
        scene = sample(seed, size=96)
        for item in scene.objects:
            if item.texture != "plain" or item.text is not None or item.kind == "ring":
                continue
            pixel = scene.image.getpixel((round(item.x * 96), round(item.y * 96)))
            assert isinstance(pixel, tuple)
            nearest = min(RGB, key=lambda name: sum((a - b) ** 2 for a, b in zip(RGB[name], pixel, strict=True)))
            assert nearest == item.colour
            ground = RGB[scene.background]
            assert sum((a - b) ** 2 for a, b in zip(pixel, ground, strict=True)) > 110**2
            checked += 1
    assert checked > 200


def test_stripes_and_dots_mark_a_circle_and_a_plain_one_is_even() -> None:
    spread: dict[str, list[int]] = defaultdict(list)
    for seed in range(300):
        scene = sample(seed, size=96)
        for item in scene.objects:
            if item.kind == "circle":
                x, y, half = item.x * 96, item.y * 96, item.radius * 96 * 0.5
                box = scene.image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
                low, high = box.convert("L").getextrema()
                assert isinstance(low, int)
                assert isinstance(high, int)
                spread[item.texture].append(high - low)
    assert max(spread["plain"]) <= 2
    assert min(spread["striped"]) > 25
    assert min(spread["dotted"]) > 25


def test_captions_count_every_shape(scenes: list[Scene]) -> None:
    numbers = {"a": 1, "an": 1} | {
        name: n for n, name in enumerate(["two", "three", "four", "five", "six", "seven", "eight"], 2)
    }
    kind, colour = "|".join(KINDS), "|".join(COLOURS)
    thing = rf"({'|'.join(numbers)}) (?:small |large )?({colour}) (?:striped |dotted )?({kind})(?:s|es)?\b"
    for scene in scenes:
        assert len(scene.caption.split()) <= 40
        assert re.search(rf"{scene.background}( background|$)", scene.caption)
        told: Counter[tuple[str, str]] = Counter()
        for number, *look in re.findall(thing, scene.caption):
            told[look[0], look[1]] += numbers[number]
        assert told == Counter((item.colour, item.kind) for item in scene.objects if item.text is None)
        for item in scene.objects:
            assert item.text is None or f"the {item.colour} {item.kind} {item.text}" in scene.caption


def test_captions_tell_true_relations(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        if parts := re.match(rf"(?:an?|the) (.+?) ({SIDE}) (?:an?|the) (.+?)(?:,| on )", scene.caption):
            axis, sign = AXES[parts[2]]
            ones, others = (matching(re.sub(r"(number|word) .*", r"\1", parts[i]), scene.objects) for i in (1, 3))
            assert any(sign * (getattr(a, axis) - getattr(b, axis)) > 0.05 for a in ones for b in others)
            checked += 1
    assert checked > 200


def test_regions_name_each_object_and_its_place(scenes: list[Scene]) -> None:
    for scene in scenes:
        for item, region in zip(scene.objects, scene.regions, strict=True):
            assert f"{item.colour} " in region
            assert f"{item.kind} " in region
            assert item.text is None or f" {item.text} " in region
            assert re.search(rf"(at|on|in) the {PLACES[item.cell]}$", region)


def test_a_seed_gives_the_same_scene_at_every_size() -> None:
    for seed in range(30):
        small, large = sample(seed, size=96), sample(seed, size=192)
        assert (small.image.size, large.image.size) == ((96, 96), (192, 192))
        assert (small.qa, small.caption, small.objects) == (large.qa, large.caption, large.objects)
        shrunk = large.image.reduce(2)
        differences = [abs(a - b) for a, b in zip(small.image.tobytes(), shrunk.tobytes(), strict=True)]
        assert sum(differences) / len(differences) < 6


def test_a_seed_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from mm_rwkv7.synthetic.scenes import sample\n"
        "for seed in range(20):\n"
        "    s = sample(seed, 96)\n"
        "    print(hashlib.sha256(s.image.tobytes() + repr((s.caption, s.qa)).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 20


@pytest.mark.parametrize(("seed", "size", "message"), [(-1, 96, "seed is -1"), (0, 0, "size is 0"), (0, 9000, "9000")])
def test_bad_seeds_and_sizes_are_refused(seed: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(seed, size)
