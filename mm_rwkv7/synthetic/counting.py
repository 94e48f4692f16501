"""Questions about sets of shapes: how many, any at all, more than others."""

from mm_rwkv7.synthetic.captions import plural, with_article
from mm_rwkv7.synthetic.objects import TEXT_KINDS, TEXTURED_KINDS
from mm_rwkv7.synthetic.references import group, refer, single
from mm_rwkv7.synthetic.view import Answered, View

_RARITY = (1, 1, 3, 7, 12, 20, 30, 40, 60)  # how much to favour an answer of 0, 1, ... 8
_TEXT, _NO_TEXT = 0.2, 0.08  # how often to ask for a text where there is one and where not: as many yes as no


def count(view: View) -> Answered:
    """How many shapes, red shapes, stars, red stars?"""
    dice, shapes = view.dice, view.shapes
    form = dice.pick(("all", "colour", "colour", "kind", "kind", "texture", "size", "colour kind"))
    if form == "all":
        return view.say("count", group="shapes"), str(len(shapes))
    fields = form.split()
    counts: dict[tuple[str, ...], int] = {}
    for item in shapes:
        values = tuple([getattr(item, field) for field in fields])
        counts[values] = counts.get(values, 0) + 1
    by_count: dict[int, list[tuple[str, ...]]] = {}
    for values, n in counts.items():
        by_count.setdefault(n, []).append(values)
    absent = _absent(view, fields, counts)
    if absent is not None:
        by_count[0] = [absent]
    n = dice.weighted(list(by_count), [_RARITY[n] for n in by_count])
    which = dict(zip(fields, dice.pick(by_count[n]), strict=True))
    return view.say("count", group=group(which)), str(n)


def _absent(view: View, fields: list[str], present: dict[tuple[str, ...], int]) -> tuple[str, ...] | None:
    """Values of the fields that no shape has together."""
    for _ in range(4):
        values = tuple([view.dice.pick(view.values(field)) for field in fields])
        if values not in present:
            return values
    return None


def exists(view: View) -> Answered:
    """Is there a star, a red shape, a red star? A word before the kind is fixed before yes or no is."""
    dice, yes = view.dice, view.dice.chance(0.5)
    if dice.chance(_NO_TEXT if view.text is None else _TEXT):
        return _text_exists(view)
    form = dice.pick(("kind", "colour", "colour kind", "colour kind", "colour kind", "size kind", "texture kind"))
    *given, asked = form.split()
    shapes, values = view.shapes, view.values(asked)
    if "texture" in given:
        values = TEXTURED_KINDS
        shapes = tuple(item for item in shapes if item.kind in TEXTURED_KINDS)
    if not shapes:
        return None
    words: dict[str, str] = {}
    if given:
        words[given[0]] = getattr(dice.pick(shapes), given[0])
        shapes = tuple(item for item in shapes if getattr(item, given[0]) == words[given[0]])
    present = list(dict.fromkeys([getattr(item, asked) for item in shapes]))
    missing = [value for value in values if value not in present]
    if not missing:
        return None
    near = [value for value in missing if any(getattr(item, asked) == value for item in view.shapes)]
    words[asked] = dice.pick(present if yes else near or missing)
    return view.say("exists", a=with_article(single(words))), "yes" if yes else "no"


def _text_exists(view: View) -> Answered:
    kind = view.dice.pick(TEXT_KINDS) if view.text is None else view.text.kind
    return view.say("exists", a=with_article(kind)), "no" if view.text is None else "yes"


def compare(view: View) -> Answered:
    """Are there more of one kind or colour than of another? Or: is one shape larger than another?"""
    dice = view.dice
    if dice.chance(0.25):
        return _compare_sizes(view)
    field = dice.pick(("kind", "colour"))
    values = [getattr(item, field) for item in view.shapes]
    first = dice.pick(values)
    others = [name for name in dice.shuffled(view.values(field)) if values.count(name) != values.count(first)]
    second = next((name for name in others if name in values), others[0])  # one that is present, if it can be
    more, fewer = (first, second) if values.count(first) > values.count(second) else (second, first)
    return _more_or_fewer(view, field, more, fewer)


def _more_or_fewer(view: View, field: str, more: str, fewer: str) -> Answered:
    dice, yes = view.dice, view.dice.chance(0.5)
    if dice.chance(0.3):
        more, fewer = (plural(more), plural(fewer)) if field == "kind" else (more, fewer)
        one, other = (more, fewer) if yes else (fewer, more)
        return view.say(f"which {field}", one=one, other=other), more
    one, other = group({field: more}), group({field: fewer})
    word = dice.pick(("more", "fewer"))
    if yes == (word == "fewer"):
        one, other = other, one
    return view.say("compare", word=word, one=one, other=other), "yes" if yes else "no"


def _compare_sizes(view: View) -> Answered:
    dice, yes = view.dice, view.dice.chance(0.5)
    large = [item for item in view.shapes if item.size == "large"]
    small = [item for item in view.shapes if item.size == "small"]
    if not large or not small:
        return None
    big, little = (refer(dice, dice.pick(items), view.objects, hidden="size") for items in (large, small))
    if big is None or little is None:
        return None
    word = dice.pick(("larger", "smaller"))
    one, other = (big, little) if yes == (word == "larger") else (little, big)
    return view.say("compare sizes", word=word, one=one, other=other), "yes" if yes else "no"
