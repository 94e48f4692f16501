"""A conversation over the engine: whatever was undone, edited, forked, saved and restored, it is as if it had been
played straight."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from app.engine import Engine, EngineConfig
from app.web.conversation import Conversation, Medium, Progress, Turn
from app.web.saved import restore, save
from app.web.shelf import Gone, Shelf
from app.web.uploads import read_uploads
from app.web.visitors import MOST, Visitors
from mm_rwkv7.decode import ModuleStepper
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State
from tests.app.servers import until
from tests.ears import without_words

Pictures = dict[str, Path]
PLAIN = Sampling()
QUESTIONS = ("What is in the picture?", "a red square", "Describe the picture.", "What", "a red red red square is in")


@pytest.fixture(scope="module")
def engine(listening_model: Any) -> Iterator[Engine]:
    with Engine(Pipeline(listening_model, "listener"), EngineConfig(slots=3)) as engine:
        yield engine


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(1 << 28)


def _media(*paths: Path) -> list[Medium]:
    return read_uploads([str(path) for path in paths])


def _last(progress: Iterator[Progress]) -> Turn:
    *_, last = progress
    assert last.last.figures.ending
    return last.last


def _distance(found: State, expected: State) -> float:
    pairs = [pair for layers in zip(found.layers, expected.layers, strict=True) for pair in zip(*layers, strict=True)]
    return max(_error(*pair) for pair in pairs)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _same(found: Conversation, expected: Conversation, shelf: Shelf, where: str = "") -> None:
    """The same words, answers and, but for roundings, states."""
    assert [(t.text, t.answer) for t in found.turns] == [(t.text, t.answer) for t in expected.turns], where
    for ours, theirs in zip(found.turns, expected.turns, strict=True):
        assert _state(shelf, ours).tokens_seen == _state(shelf, theirs).tokens_seen, where
        assert _distance(_state(shelf, ours), _state(shelf, theirs)) < 1e-4, where


def _state(shelf: Shelf, turn: Turn) -> State:
    found = shelf.get(turn.after)
    assert found is not None
    return found


def test_a_chat_equals_the_pipelines(engine: Engine, shelf: Shelf, pictures: Pictures, wave: Path) -> None:
    conversation, pipeline = Conversation(engine, shelf), engine.pipeline
    state = None
    for question, media in (
        ("What is it?", [pictures["red"], wave]),
        ("Where?", []),
        ("And this?", [pictures["blue"]]),
    ):
        turn = _last(conversation.ask(question, _media(*media), PLAIN))
        images = [path for path in media if path.suffix == ".png"]
        alone = pipeline.ask(question, images, [wave] if wave in media else [], state=state)
        assert turn.answer == alone.text
        assert _distance(_state(shelf, turn), alone.state) < 1e-4
        state = alone.state
    assert [len(turn.media) for turn in conversation.turns] == [2, 0, 1]


def test_without_remembering_each_question_comes_right_after_the_picture(
    engine: Engine, shelf: Shelf, pictures: Pictures
) -> None:
    conversation, pipeline = Conversation(engine, shelf), engine.pipeline
    for question, media in (("What is it?", ["red"]), ("Where?", []), ("What is it?", []), ("Where?", ["blue"])):
        seen = pictures[media[0] if media else "red"]
        turn = _last(conversation.ask(question, _media(*[pictures[name] for name in media]), PLAIN, remember=False))
        assert turn.answer == pipeline.ask(question, [seen]).text
    assert len(conversation.turns) == 4


def test_undo_edit_and_another_answer_compute_nothing_that_was_read(
    engine: Engine, shelf: Shelf, pictures: Pictures
) -> None:
    conversation = Conversation(engine, shelf)
    _last(conversation.ask("What?", _media(pictures["red"]), PLAIN))
    before = engine.counts.tokens_read
    _last(conversation.ask("Where is it in the picture?", [], PLAIN))
    read = engine.counts.tokens_read - before
    before = engine.counts.tokens_read
    conversation.undo()
    assert engine.counts.tokens_read == before
    first = _last(conversation.regenerate(PLAIN))
    assert engine.counts.tokens_read - before < read
    edited = _last(conversation.edit(0, "Describe the picture.", PLAIN))
    assert engine.counts.tokens_read - before < 2 * read  # the picture alone takes more
    assert first.answer == engine.pipeline.ask("What?", [pictures["red"]]).text
    assert edited.answer == engine.pipeline.ask("Describe the picture.", [pictures["red"]]).text
    assert edited.media == first.media


def test_a_fork_goes_its_own_way(engine: Engine, shelf: Shelf) -> None:
    one = Conversation(engine, shelf)
    _last(one.ask("What?", [], PLAIN))
    held = shelf.bytes
    other = one.fork()
    assert shelf.bytes == held
    _last(one.ask("a red square", [], PLAIN))
    _last(other.ask("Describe the picture.", [], PLAIN))
    for conversation, said in ((one, ["What?", "a red square"]), (other, ["What?", "Describe the picture."])):
        straight = Conversation(engine, shelf)
        for text in said:
            _last(straight.ask(text, [], PLAIN))
        _same(conversation, straight, shelf)


def test_a_saved_conversation_goes_on_elsewhere(
    engine: Engine, shelf: Shelf, listening_model: Any, pictures: Pictures, wave: Path
) -> None:
    conversation = Conversation(engine, shelf)
    _last(conversation.ask("What is it?", _media(pictures["red"], wave), PLAIN))
    _last(conversation.ask("Where?", [], PLAIN))
    data = save(conversation.turns, shelf, engine.pipeline)
    with Engine(Pipeline(listening_model, "another machine"), EngineConfig(slots=1)) as elsewhere:
        other = Shelf(1 << 28)
        restored = Conversation(elsewhere, other, restore(data, other, elsewhere.pipeline))
        shown = [(medium.kind, medium.name, bool(medium.preview)) for medium in restored.turns[0].media]
        assert shown == [("image", "red.png", True), ("audio", wave.name, False)]
        for one in (conversation, restored):
            _last(one.ask("And?", [], PLAIN))
        assert restored.turns[-1].answer == conversation.turns[-1].answer
        restored.undo()
        for one in (conversation, restored):
            _last(one.edit(0, "Describe the picture.", PLAIN))
        assert restored.turns[-1].answer == conversation.turns[-1].answer
        restored.undo()
        assert restored.turns == ()


def test_a_file_keeps_the_last_states_when_there_are_many(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(engine, shelf)
    for _ in range(4):
        _last(conversation.ask("What?", [], PLAIN))
    whole = len(save(conversation.turns, shelf, engine.pipeline))
    monkeypatch.setattr("app.web.saved.STATES", 0)
    data = save(conversation.turns, shelf, engine.pipeline)
    assert len(data) < whole / 2
    restored = Conversation(engine, shelf, restore(data, shelf, engine.pipeline))
    assert [turn.answer for turn in restored.turns] == [turn.answer for turn in conversation.turns]
    with pytest.raises(Gone, match="make room"):
        restored.undo()
    for one in (conversation, restored):
        _last(one.ask("And?", [], PLAIN))
    assert restored.turns[-1].answer == conversation.turns[-1].answer


def test_the_states_of_long_conversations_are_bounded(engine: Engine) -> None:
    size = sum(tensor.nbytes for layer in engine.pipeline.model.lm.initial_state().layers for tensor in layer)
    shelf = Shelf(3 * size)
    conversation = Conversation(engine, shelf)
    for _ in range(6):
        _last(conversation.ask("What?", [], PLAIN))
        assert shelf.bytes <= 3 * size
    conversation.undo()
    conversation.undo()
    with pytest.raises(Gone, match="make room"):
        conversation.undo()
    with pytest.raises(Gone, match="make room"):
        _last(conversation.edit(2, "What?", PLAIN))
    assert len(conversation.turns) == 4
    assert _last(conversation.ask("a red square", [], PLAIN)).answer


def test_a_picture_is_encoded_once(
    engine: Engine, shelf: Shelf, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.media.encoded
    conversation = Conversation(engine, shelf)
    _last(conversation.ask("What?", _media(pictures["blue"]), PLAIN))
    for _ in range(2):
        _last(conversation.ask("What?", [], PLAIN))
        _last(conversation.regenerate(PLAIN))
    assert engine.media.encoded - before <= 1


def test_two_questions_of_one_moment_come_one_after_the_other(engine: Engine, shelf: Shelf) -> None:
    """Both are asked before either is begun: the second knows of the first."""
    conversation, straight = Conversation(engine, shelf), Conversation(engine, shelf)
    first, second = (conversation.ask(text, [], PLAIN) for text in ("What?", "a red square"))
    for asked in (first, second):
        _last(asked)
    for text in ("What?", "a red square"):
        _last(straight.ask(text, [], PLAIN))
    _same(conversation, straight, shelf)


def test_stop_keeps_what_was_written_and_goes_on_from_there(endless_model: Any, shelf: Shelf) -> None:
    with Engine(Pipeline(endless_model, "endless"), EngineConfig(slots=2)) as engine:
        conversation = Conversation(engine, shelf)
        writing = conversation.ask("What?", [], Sampling(10**6))
        next(writing)
        conversation.stop()
        turn = _last(writing)
        assert turn.figures.ending == "cancelled"
        assert turn.answer
        assert conversation.turns == (turn,)
        assert not conversation.busy
        turns_end = len(engine.pipeline.tokenizer.encode(engine.pipeline.model.config.template.turn_end))
        seen = turn.figures.read + turn.figures.written
        assert seen <= _state(shelf, turn).tokens_seen <= seen + turns_end


def test_stop_while_a_picture_is_read_changes_nothing(engine: Engine, shelf: Shelf, pictures: Pictures) -> None:
    conversation = Conversation(engine, shelf)
    asking = conversation.ask("What?", _media(pictures["red"]), PLAIN)
    assert next(asking).reading
    conversation.stop()
    assert list(asking) == []
    assert conversation.turns == ()
    assert not conversation.busy
    assert _last(conversation.ask("What?", [], PLAIN)).answer


@pytest.mark.usefixtures("unhurried")
def test_who_leaves_frees_the_conversation_and_the_slot(endless_model: Any, shelf: Shelf) -> None:
    with Engine(Pipeline(endless_model, "endless"), EngineConfig(slots=1)) as engine:
        conversation = Conversation(engine, shelf)
        writing = conversation.ask("What?", [], PLAIN)
        next(writing)
        with pytest.raises(ValueError, match="still being written"):
            next(conversation.ask("And?", [], PLAIN))
        with pytest.raises(ValueError, match="still being written"):
            conversation.undo()
        writing.close()  # type: ignore[attr-defined]
        assert not conversation.busy
        assert conversation.turns == ()
        short = Sampling(max_new_tokens=3)
        assert _last(conversation.ask("And?", [], short)).figures.written == 3


@pytest.mark.parametrize("name", ["nowhere.png", "text.png", "long.wav"])
def test_a_bad_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wave: Path, name: str) -> None:
    monkeypatch.setattr("app.web.uploads.SOUND_S", 0.5)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "long.wav").write_bytes(wave.read_bytes())
    said = {"nowhere.png": "no such file", "text.png": "neither a picture nor a sound", "long.wav": "longer than 0.5 s"}
    with pytest.raises(ValueError, match=said[name]):
        _media(tmp_path / name)


def test_what_cannot_be_said_is_refused_and_changes_nothing(engine: Engine, shelf: Shelf, pictures: Pictures) -> None:
    conversation = Conversation(engine, shelf)
    for refused in (
        lambda: conversation.ask(" ", [], PLAIN),
        lambda: conversation.ask("", _media(pictures["red"]), PLAIN),
        lambda: conversation.regenerate(PLAIN),
        lambda: conversation.edit(0, "What?", PLAIN),
        lambda: conversation.edit(-1, "What?", PLAIN),
        lambda: iter([conversation.undo()]),
        lambda: iter([save(conversation.turns, shelf, engine.pipeline)]),
    ):
        with pytest.raises(ValueError, match=r"is empty|nothing was said|no turn"):
            list(refused())  # type: ignore[call-overload]
    assert conversation.turns == ()
    assert not conversation.busy


def test_a_model_that_needs_no_words_is_sent_a_sound_alone(listening_model: Any, shelf: Shelf, wave: Path) -> None:
    pipeline = Pipeline(without_words(listening_model), "listener")
    with Engine(pipeline, EngineConfig(slots=1)) as engine:
        turn = _last(Conversation(engine, shelf).ask("", _media(wave), PLAIN))
        assert turn.answer == pipeline.ask("", audio=[wave]).text


def test_conversations_side_by_side_do_not_hear_each_other(engine: Engine, pictures: Pictures) -> None:
    visitors = Visitors(engine)

    def talk(name: str) -> list[str]:
        conversation = visitors.of(name).current
        seen = _media(pictures["red" if int(name) % 2 else "blue"])
        return [_last(conversation.ask(text, media, PLAIN)).answer for text, media in (("What?", seen), ("Where?", []))]

    alone = {name: talk(name) for name in ("100", "101")}
    assert alone["100"] != alone["101"]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(talk, map(str, range(8))))
    assert together == [alone["100"], alone["101"]] * 4


def test_visitors_are_bounded_in_number_and_age(engine: Engine) -> None:
    clock = count(step=10)
    visitors = Visitors(engine, capacity=2, seconds=35, clock=lambda: next(clock))
    first, second = visitors.of("first"), visitors.of("second")
    assert visitors.of("first") is first  # and is now the most recent
    visitors.of("third")
    assert len(visitors) == 2
    assert visitors.of("first") is first
    assert visitors.of("second") is not second
    for _ in range(4):
        assert visitors.of("fourth")
    assert len(visitors) == 1
    visitors.forget("fourth")
    visitors.forget("nobody")
    assert len(visitors) == 0


def test_a_tab_has_several_conversations_one_of_which_is_shown(engine: Engine) -> None:
    visitor = Visitors(engine).of("tab")
    _last(visitor.current.ask("What is in the picture?", [], PLAIN))
    first = visitor.current
    visitor.open(first.fork())
    assert visitor.current is not first
    assert visitor.titles == [("1 · What is in the pictur…", 1), ("2 · What is in the pictur…", 2)]
    with pytest.raises(ValueError, match="no conversation was closed"):
        visitor.reopen()
    visitor.show(1)
    assert visitor.current is first
    with pytest.raises(ValueError, match="no such conversation"):
        visitor.show(7)
    visitor.close()
    assert visitor.shown == 2
    visitor.close()
    assert visitor.titles == [("3 · new", 3)]
    visitor.close()  # nothing was said in it, and nothing is lost
    visitor.reopen()
    assert [turn.text for turn in visitor.current.turns] == ["What is in the picture?"]
    assert _last(visitor.current.ask("What?", [], PLAIN)).answer
    assert visitor.closed is None
    while len(visitor.titles) < MOST:
        visitor.open()
    with pytest.raises(ValueError, match=f"holds {MOST}"):
        visitor.open()


@dataclass
class Play:
    """A conversation, what counts of what was said in it, and the answer that is on its way, if any: its progress, what
    will have been said then, and the turns from before."""

    conversation: Conversation
    said: list[tuple[str, tuple[Path, ...], int, bool]] = field(default_factory=list)
    asked: Iterator[Progress] | None = None
    saying: list[Any] = field(default_factory=list)
    before: tuple[Turn, ...] = ()

    def begin(self, asked: Iterator[Progress], saying: list[Any]) -> None:
        self.asked, self.saying, self.before = asked, saying, self.conversation.turns

    def end(self) -> None:
        """Whatever became of it: a turn that was left early has changed nothing."""
        if self.conversation.turns is not self.before:
            self.said = self.saying
        self.asked = None

    def check(self, shelf: Shelf, pipeline: Pipeline, where: str) -> None:
        """Against the turns that count, played one after another by the pipeline alone."""
        state: State | None = None
        opened: State | None = None
        assert [turn.text for turn in self.conversation.turns] == [text for text, *_ in self.said], where
        for turn, (text, files, most, remember) in zip(self.conversation.turns, self.said, strict=True):
            if not remember:
                state = None if files else opened
            if files:
                parts = [{"type": one.kind, one.kind: one.content} for one in _media(*files)]
                state = opened = pipeline.prefill([{"role": "user", "content": parts}], state)
            answer = pipeline.chat([{"role": "user", "content": text}], Sampling(most), state)
            if turn.answer == answer.text:
                assert _distance(_state(shelf, turn), answer.state) < 1e-4, where
            else:
                assert _near_tie(pipeline, text, state), f"{where}: {turn.answer!r}, expected {answer.text!r}"
            state = shelf.get(turn.after)  # roundings do not add up, and a near tie does not send the rest astray


def _near_tie(pipeline: Pipeline, text: str, state: State | None) -> bool:
    """Whether the two best of any of an answer's tokens lie so close that roundings may choose."""
    step = ModuleStepper(pipeline.model.lm)
    batch = pipeline.processor([{"role": "user", "content": text}], open_turn=state is not None and state.open_turn)
    hidden, state = pipeline._read(batch, state)
    for _ in range(8):
        logits = step.logits(hidden)[0]
        best = logits.topk(2)
        if float(best.values[0] - best.values[1]) < 1e-5 * float(logits[logits > -500].norm()):
            return True
        hidden, state = step(pipeline.model.lm.embed(best.indices[:1]), state)
    return False


def _act(play: Play, plays: list[Play], engine: Engine, shelf: Shelf, files: list[Path], rng: random.Random) -> None:
    one, said = play.conversation, play.said
    if play.asked is not None:
        what = rng.choice(["step", "step", "end", "leave"])
        if what == "step" and next(play.asked, None) is not None:
            return
        if what == "leave":
            play.asked.close()  # type: ignore[attr-defined]
        list(play.asked)
        play.end()
        return
    what = rng.choice(["ask", "ask", "ask", "edit", "edit", "retry", "undo", "fork", "save"])
    text, most = rng.choice(QUESTIONS), rng.randint(1, 8)
    if what == "ask":
        chosen, remember = tuple(rng.choices(files, k=rng.choice([0, 0, 1, 2]))), rng.random() < 0.7
        asked = one.ask(text, _media(*chosen), Sampling(most), remember)
        play.begin(asked, [*said, (text, chosen, most, remember)])
    elif what == "fork" and len(plays) < 6:
        plays.append(Play(one.fork(), list(said)))
    elif said and what in ("edit", "retry"):
        number = rng.randrange(len(said)) if what == "edit" else len(said) - 1
        old, chosen, _, remember = said[number]
        asked = one.edit(number, text, Sampling(most)) if what == "edit" else one.regenerate(Sampling(most))
        play.begin(asked, [*said[:number], (text if what == "edit" else old, chosen, most, remember)])
    elif said and what == "undo":
        one.undo()
        play.said = said[:-1]
    elif said and what == "save":
        turns = restore(save(one.turns, shelf, engine.pipeline), shelf, engine.pipeline)
        play.conversation = Conversation(engine, shelf, turns)


def _play(engine: Engine, files: list[Path], seed: int, acts: int) -> int:
    """How many turns there were in the end."""
    rng, shelf = random.Random(seed), Shelf(1 << 28)
    plays = [Play(Conversation(engine, shelf)) for _ in range(3)]
    for act in range(acts):
        play = rng.choice(plays)
        _act(play, plays, engine, shelf, files, rng)
        if play.asked is None:
            play.check(shelf, engine.pipeline, f"seed {seed}, act {act}")
    for play in plays:
        if play.asked is not None:
            list(play.asked)
            play.end()
        play.check(shelf, engine.pipeline, f"seed {seed}, at the end")
    until(lambda: engine.scheduler.free == engine.config.slots, f"seed {seed}: slots are free")
    return sum(len(play.said) for play in plays)


def test_whatever_is_done_it_is_as_if_only_what_counts_had_been_said(
    engine: Engine, pictures: Pictures, wave: Path, seed: int
) -> None:
    assert _play(engine, [pictures["red"], pictures["blue"], wave], seed, acts=150) > 0


@pytest.mark.slow
def test_whatever_is_done_for_long(engine: Engine, pictures: Pictures, wave: Path, seed: int) -> None:
    for number in range(4):
        _play(engine, [pictures["red"], pictures["blue"], wave], seed + number, acts=150)
