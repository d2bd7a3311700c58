"""The prompts of a study in two halves: those that trials are judged by, and those held out, which only a finished search opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jpgen.errors import PromptError, StudyError
from jpgen.evaluate.bench_mame import Question, read_questions
from jpgen.evaluate.judge import Facts
from jpgen.merge.study import Finished


@dataclass(frozen=True)
class Panel:
    """Prompts, and the seeds of the pictures of each: the same for every trial, so that trials differ by their weights alone."""

    questions: tuple[Question, ...]
    seed: int = 1000
    pictures: int = 1

    @property
    def prompts(self) -> list[str]:
        """The Japanese texts."""
        return [question.ja for question in self.questions]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class HeldOut:
    """Prompts that no trial is judged by. There is no way to them but `open`, and no `Finished` but that of a search that is over."""

    def __init__(self, panel: Panel) -> None:
        self.__panel = panel

    @property
    def digest(self) -> str:
        """SHA-256 of the prompts."""
        return self.__panel.digest

    def __len__(self) -> int:
        return len(self.__panel.questions)

    def __reduce__(self) -> str:
        raise TypeError("held-out prompts are not sent to workers of a search")

    def open(self, finished: Finished) -> Panel:
        """The prompts, for the search that is over."""
        if not isinstance(finished, Finished):
            raise StudyError("探索が終わるまで開けません / held-out prompts open when the search is over (Study.finished)")
        return self.__panel


def read_prompts(path: Path) -> list[Question]:
    """The prompts of a `.tsv` file that tells what each one says (the columns of `jpgen.evaluate.bench_mame`), or of a text file, one a line.

    Raises PromptError for a file that cannot be read, or that holds a prompt twice.
    """
    if path.suffix == ".tsv":
        questions = read_questions(path)
    else:
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{path} を読めません / cannot read the prompts {path}: {error}") from error
        questions = [Question(str(n), "", line, line, Facts()) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
    texts = [question.ja for question in questions]
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise PromptError(f"{path}: 同じプロンプトが二度あります / these prompts are there twice: {', '.join(twice[:3])}")
    return questions


def evenly(questions: Sequence[Question], count: int) -> list[Question]:
    """So many of them, from the whole file."""
    return [questions[i * len(questions) // count] for i in range(count)]


def split(questions: Sequence[Question], search: int, held_out: int, *, seed: int, pictures: int) -> tuple[Panel, HeldOut]:
    """Two halves without a prompt in common, each from the whole file; raises StudyError if there are too few."""
    if search < 1 or held_out < 1 or search + held_out > len(questions):
        raise StudyError(
            f"プロンプトが {len(questions)} 個では足りません / {search} prompts to search by and {held_out} held out are wanted, "
            f"of {len(questions)}: both at least 1, together no more than there are"
        )
    chosen = evenly(questions, search)
    rest = [question for question in questions if question not in chosen]
    return halves(chosen, evenly(rest, held_out), seed=seed, pictures=pictures)


def halves(search: Sequence[Question], held_out: Sequence[Question], *, seed: int, pictures: int) -> tuple[Panel, HeldOut]:
    """Two lists as they are; raises StudyError for a prompt that is in both, or a list that is empty."""
    both = {question.ja for question in search} & {question.ja for question in held_out}
    if both or not search or not held_out:
        why = f"両方にあります / in both: {', '.join(sorted(both)[:3])}" if both else "空です / one list is empty"
        raise StudyError(f"探索用と検証用のプロンプトを分けてください / prompts to search by and held-out ones must differ: {why}")
    return Panel(tuple(search), seed, pictures), HeldOut(Panel(tuple(held_out), seed, pictures))
