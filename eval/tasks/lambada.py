"""LAMBADA: the last word of 5,153 passages, which only the whole passage gives away."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.files import Record, read_jsonl, read_text
from eval.finite import finite, perplexity
from eval.task import Mode, Sample, Scores, Task

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline


class Lambada(Task):
    """The passages as OpenAI's GPT-2 was tested on, with their line breaks and quotation marks repaired.

    A prediction is the logarithm of the last word's probability, space before it included, and 1 where taking the
    likeliest token each time writes the word, else 0. The passage is read after the end of another text, as RWKV's
    training reads them, and its two parts are cut into tokens one by one.
    """

    name = "lambada"
    variant = "OpenAI's version: the last word after the end-of-text token and the passage"
    folder = "lambada"
    mode = Mode.LIKELIHOOD
    file = "lambada_test.jsonl"
    origin = "https://huggingface.co/datasets/EleutherAI/lambada_openai (data/lambada_test_en.jsonl, under this name)"

    def passages(self, data: Path) -> Iterator[Record]:
        """The texts, in order."""
        return (record["text"] for record in read_jsonl(data / self.file, self.origin))

    def samples(self, data: Path) -> Sequence[Sample]:
        found = []
        for number, record in enumerate(self.passages(data)):
            before, _, word = record.text().strip().rpartition(" ")
            if not before:
                raise record.error(f"expected a passage of several words, got {record.text()!r:.80}")
            found.append(Sample(id=str(number), question=before, choices=(f" {word}",), expected=word))
        return found

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
        encode = pipeline.tokenizer.encode
        for sample in samples:
            prompt = [pipeline.tokenizer.end_id, *encode(sample.question)]
            (found,) = pipeline.token_likelihood(prompt, [encode(sample.choices[0])])
            yield [found.total, float(found.greedy)]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        for name, prediction in predictions.items():
            if len(prediction) != 2 or prediction[1] not in (0, 1):
                raise ValueError(f"the prediction of {name!r} is {prediction!r:.80}, expected a logarithm and 0 or 1")

        def of(names: Sequence[str]) -> float:
            return perplexity(sum(predictions[name][0] for name in names), len(names))

        right = {name: 100 * flag for name, (_, flag) in predictions.items()}
        metrics, notes = finite({"accuracy": sum(right.values()) / len(right), "perplexity": of(list(predictions))})
        return Scores(
            main="accuracy",
            metrics=metrics,
            per_sample=right,
            corpus={"perplexity": of} if "perplexity" in metrics else {},
            notes=notes,
        )


class Standard(Lambada):
    """The passages as first published: lower case, words and punctuation set apart by spaces."""

    name = "lambada_standard"
    variant = "the version first published: the last word after the end-of-text token and the passage"
    file = "lambada_test_plain_text.txt"
    origin = "https://zenodo.org/records/2630551 (lambada-dataset.tar.gz)"

    def passages(self, data: Path) -> Iterator[Record]:
        lines = enumerate(read_text(data / self.file, self.origin).split("\n"), start=1)
        return (Record(f"{data / self.file}, line {number}", line) for number, line in lines if line.strip())
