"""Ways of drawing compared on the same prompts and seeds: `compare` draws, scores and keeps what is done, so that it can be stopped and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from jpgen.errors import JpgenError, SettingError
from jpgen.evaluate.cases import JAPANESE_AND_ENGLISH, Arm, Case, cases_of, checked_arms
from jpgen.evaluate.comparison import Comparison, Outcome
from jpgen.evaluate.journal import Journal, key_of
from jpgen.evaluate.scorer import DEFAULT_SCORER, ImageTextScorer, open_scorer
from jpgen.evaluate.scores import PERCENT, finite
from jpgen.pictures import read_picture
from jpgen.pipeline import Pipeline
from jpgen.prompt import normalize
from jpgen.types import SamplingConfig, require_seed

Progress = Callable[[int, int], None]
"""Called after every picture with how many are done and how many there are."""

SEEDS = (0, 1, 2, 3)


def compare(
    prompts: Iterable[str | tuple[str, str] | Case] | Path,
    *,
    arms: Sequence[Arm] = JAPANESE_AND_ENGLISH,
    seeds: Sequence[int] = SEEDS,
    model: str | Path | ImageTextScorer = DEFAULT_SCORER,
    output: str | Path = "comparison",
    on_progress: Progress | None = None,
) -> Comparison:
    """Draw every prompt by every arm with every seed, and score each picture against what its prompt means.

    `prompts` are Japanese texts, (Japanese, English) pairs, `Case`s or a TSV file (columns ja, en, clean, tags); `model` is the scorer. A picture's
    score is the mean of 100 · cosine over `Case.wanted`, the same texts for every arm. Pictures and scores are kept in the folder `output`, with
    `report.html`: the same call again draws nothing, and a larger one only what is new. A prompt that an arm cannot read counts as not drawn.

    Raises PromptError, SettingError (arms, seeds, their settings), UnknownNameError, WeightsError, OutputError, MissingExtraError (no pandas).

        >>> from jpgen import compare
        >>> found = compare([("赤い鳥居", "a red torii gate")], seeds=[1, 2])  # doctest: +SKIP
        >>> found.table  # doctest: +SKIP
        >>> found.difference("ja", "en").clear  # doctest: +SKIP
    """
    cases, arms, numbers = cases_of(prompts), checked_arms(arms), [require_seed(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise SettingError(f"seeds={list(seeds)!r}: 別々のシードを一つ以上渡してください / give one seed or more, each once")
    for case in cases:
        for arm in arms:
            case.prompt(arm.language)
    scorer = open_scorer(model)
    texts = _Texts(scorer)
    outcomes: list[Outcome] = []
    journal, total = Journal(Path(output)), len(cases) * len(arms) * len(numbers)
    for arm in arms:
        drawing = _Drawing(arm, journal)
        for number, case in enumerate(cases):
            for seed in numbers:
                outcomes.append(_outcome(drawing, case, seed, number, texts))
                if on_progress:
                    on_progress(len(outcomes), total)
    found = Comparison(cases, arms, tuple(numbers), scorer.name, tuple(outcomes), Path(output))
    found.write_report()
    return found


def _outcome(drawing: _Drawing, case: Case, seed: int, number: int, texts: _Texts) -> Outcome:
    journal, made = drawing.journal, drawing.draw(case, seed)
    if made.problem:
        return Outcome(drawing.arm.name, number, seed, float("nan"), "", 0.0, made.problem)
    key = key_of(picture=made.key, scorer=texts.scorer.name, weights=texts.identity, wanted=case.wanted)
    if key not in journal.rows:
        journal.write(key, score=texts.score(read_picture(journal.picture(made.key), "picture"), case))
    return Outcome(drawing.arm.name, number, seed, float(journal.rows[key]["score"]), journal.picture(made.key).name, made.seconds)


@dataclass(frozen=True)
class _Made:
    key: str
    seconds: float
    problem: str = ""


class _Drawing:
    """An arm's pictures, drawn where the journal has none; the pipeline is opened at once, since its weights are part of a picture's key."""

    def __init__(self, arm: Arm, journal: Journal) -> None:
        self.arm, self.journal = arm, journal
        self._pipeline = Pipeline(arm.model, translator=arm.translator or None)
        self._config: SamplingConfig = self._pipeline.config(steps=arm.steps or None, guidance_scale=arm.guidance_scale or None)

    def draw(self, case: Case, seed: int) -> _Made:
        """The picture, which is in the journal's folder then, or why there is none."""
        prompt, pipeline = case.prompt(self.arm.language), self._pipeline
        translator = pipeline.translator.name if pipeline.translator else ""
        key = key_of(
            prompt=prompt, read=self._read(prompt, seed), seed=seed, model=pipeline.info.name, weights=pipeline.info.weights_hash,
            normalize=self.arm.normalize, translator=translator, config=asdict(self._config),
        )  # fmt: skip
        row = self.journal.rows.get(key)
        if row is None or not (row.get("problem") or self.journal.picture(key).is_file()):
            self._draw(key, prompt, seed)
            row = self.journal.rows[key]
        return _Made(key, float(row.get("seconds", 0.0)), str(row.get("problem", "")))

    def _read(self, prompt: str, seed: int) -> list[str]:
        """What the normaliser of today makes of the prompt, so that one with other rules draws other pictures."""
        if not self.arm.normalize:
            return []
        try:
            read = normalize(prompt, seed=seed)
        except (ValueError, KeyError):  # `generate` meets it again, and tells
            return []
        return [read.written, read.negative]

    def _draw(self, key: str, prompt: str, seed: int) -> None:
        try:
            made = self._pipeline.generate(prompt, seed=seed, config=self._config, normalize=self.arm.normalize)
        except (ValueError, KeyError) as error:
            if not isinstance(error, JpgenError):
                raise
            self.journal.write(key, problem=str(error), prompt=prompt, seed=seed)
            return
        made.save(self.journal.picture(key))
        self.journal.write(key, prompt=prompt, read=made.prompt.written, seed=seed, seconds=round(made.seconds, 3))


class _Texts:
    """A scorer that remembers the features of the last case's texts, and what tells its weights from others of its name."""

    def __init__(self, scorer: ImageTextScorer) -> None:
        self.scorer = scorer
        self.identity = key_of(features=[round(value, 4) for value in finite(scorer.text_features(["猫 cat"]), scorer)[0, :16].tolist()])
        self._of: Case | None = None

    def score(self, image: Image.Image, case: Case) -> float:
        """The mean of 100 · cosine over what the case wants, rounded to 5 digits."""
        if self._of != case:
            self._of, self._features = case, finite(self.scorer.text_features(list(case.wanted)), self.scorer)
        return round(float((finite(self.scorer.image_features([image]), self.scorer) @ self._features.T).mean()) * PERCENT, 5)

