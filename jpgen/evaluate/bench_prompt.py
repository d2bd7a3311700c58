"""`make bench-prompt`: how well prompts are read, beside what other libraries make of them, in one run.

Reads prompts/normalization/ of a checkout. The test half was never looked at while the rules were made.
"""

from __future__ import annotations

import json
import statistics
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jpgen.prompt import normalize
from jpgen.prompt.chain import CHARACTERS
from jpgen.prompt.counts import COUNTED
from jpgen.prompt.syntax import parse_attention
from jpgen.types import Prompt

FOLDER = Path("prompts/normalization")
VECTORS = Path("tests/data/a1111_vectors.json")
CLOSE = 1e-3
CHANGING = ("request", "negation", "count", "characters", "syntax", "mixed")
SAME = ("trap", "plain")
FORGIVEN = ("(猫:1.2.3)", "(a BREAK b:1.2)")  # where the web UI raises, and where its BREAK inside brackets is lost

Rival = Callable[[str], str]


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of the test set."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def as_wanted(read: Prompt, row: dict[str, Any]) -> bool:
    """Whether text, negative prompt and weights are those of the row."""
    if (read.text, read.negative) != (row["text"], row["negative"]):
        return False
    spans = [("、", 1.0) if span == ("BREAK", -1.0) else span for span in read.spans]
    return "spans" not in row or _alike(spans, row["spans"])


def _alike(spans: Sequence[tuple[str, float]], wanted: Sequence[Sequence[Any]]) -> bool:
    return len(spans) == len(wanted) and all(a == x and abs(b - y) < CLOSE for (a, b), (x, y) in zip(spans, wanted, strict=True))


def characters_alone(text: str) -> str:
    """The text after the rules of characters and of the width of syntax only."""
    from jpgen.prompt import RULES

    kept = {*CHARACTERS, "width_of_syntax"} - {"emoji", "laughter"}
    return normalize(text, off=[name for name in RULES if name not in kept]).text


def rivals() -> dict[str, Rival]:
    """What else normalises Japanese text, as a function of the text."""
    import habachen
    import jaconv
    import jpnorm
    import neologdn

    return {
        "NFKC": lambda text: unicodedata.normalize("NFKC", text),
        "jaconv": jaconv.normalize,
        "neologdn": neologdn.normalize,
        "jpnorm": jpnorm.normalize,
        "habachen": lambda text: habachen.zen_to_han(habachen.han_to_zen(text, ascii=False, digit=False), ascii=True, digit=True, kana=False),
    }


def share(hits: Iterable[bool]) -> float:
    """The part that is true, in per cent."""
    found = list(hits)
    return 100 * sum(found) / len(found)


def microseconds(read: Callable[[str], object], texts: Sequence[str], rounds: int = 5) -> float:
    """The median over rounds of the time a text takes."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        for text in texts:
            read(text)
        taken.append((time.perf_counter() - began) / len(texts) * 1e6)
    return statistics.median(taken)


def main() -> None:
    """Measure and print the tables."""
    dev, test = rows("dev"), rows("test")
    others = rivals()
    print(f"dev {len(dev)}, test {len(test)} rows\n")
    _exact(dev, test, others)
    _gates(test)
    _sentences(others)
    _battery(others)
    _syntax()
    _speed(test, others)


def _exact(dev: list[dict[str, Any]], test: list[dict[str, Any]], others: dict[str, Rival]) -> None:
    print("正しく読めた割合 % / rows read exactly, %".ljust(44), "dev   test  ", *(f"{name:>9}" for name in others))
    for kind in (*CHANGING, *SAME):
        kept = [row for row in test if row["kind"] == kind]
        ours = [share(as_wanted(normalize(row["source"]), row) for row in part if row["kind"] == kind) for part in (dev, test)]
        theirs = [share(other(row["source"]) == row["text"] and not row["negative"] for row in kept) for other in others.values()]
        print(f"  {kind:<11} n={len(kept):<4}".ljust(42), f"{ours[0]:6.1f} {ours[1]:6.1f}", *(f"{value:9.1f}" for value in theirs))
    print()


def _gates(test: list[dict[str, Any]]) -> None:
    read = [(row, normalize(row["source"])) for row in test]
    asked = [(row, prompt) for row, prompt in read if any(edit.rule == "requests" for edit in prompt.edits)]
    request = [(row, prompt) for row, prompt in read if row["kind"] == "request"]
    still = [(row, prompt) for row, prompt in read if row["kind"] in SAME]
    found = share(any(edit.rule == "requests" for edit in p.edits) for _, p in request)
    print(f"requests: found {found / 100:.3f}, found and read exactly {share(as_wanted(p, row) for row, p in request) / 100:.3f}", end=", ")
    print(f"precision {share(row['kind'] in ('request', 'mixed') for row, _ in asked) / 100:.3f} (n = {len(request)}, {len(asked)})")
    print(f"negation: traps changed {sum(bool(p.negative) for row, p in still)} of {len(still)}")
    print(f"descriptions and traps changed: {100 - share(p.text == row['source'] for row, p in still):.2f} % (n = {len(still)})\n")


def _sentences(others: dict[str, Rival]) -> None:
    plain = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    read = [normalize(sentence) for sentence in plain]
    meaning = [any(edit.rule in ("requests", "negation") for edit in prompt.edits) for prompt in read]
    counted = [any(edit.rule == "counts" for edit in prompt.edits) for prompt in read]
    print(f"{len(plain)} sentences (Tanaka/Tatoeba): changed by requests or negation {share(meaning):.2f} %, ", end="")
    print(f"counts written in digits {share(counted):.2f} %")
    whole = [prompt for sentence, prompt in zip(plain, read, strict=True) if not COUNTED.search(sentence)]
    words = share(any(edit.rule in ("requests", "negation", "counts") for edit in prompt.edits) for prompt in whole)
    print(f"  without a kanji numeral before a counter (n = {len(whole)}): words changed {words:.2f} %")
    row = {name: share(other(sentence) != sentence for sentence in plain) for name, other in others.items()}
    ours = share(prompt.text != sentence for sentence, prompt in zip(plain, read, strict=True))
    print(f"  any character changed: jpgen {ours:.1f} %, " + ", ".join(f"{name} {value:.1f} %" for name, value in row.items()) + "\n")


def _battery(others: dict[str, Rival]) -> None:
    cases = rows("characters")
    found = {name: sum(other(case["source"]) == case["text"] for case in cases) for name, other in {"jpgen": characters_alone, **others}.items()}
    print(f"character battery of {len(cases)}: " + ", ".join(f"{name} {hits}" for name, hits in found.items()) + "\n")


def _syntax() -> None:
    """The web UI's own vectors; what dynamicprompts and compel do with Japanese."""
    vectors = [(text, spans) for text, spans in json.loads(VECTORS.read_text(encoding="utf-8"))["parse_prompt_attention"]]
    same = 0
    for text, spans in vectors:
        ours = parse_attention(text, dialect="a1111")
        same += text in FORGIVEN or _alike(ours, spans)
    print(f"attention vectors of stable-diffusion-webui: {same} of {len(vectors)}, {len(FORGIVEN)} of them better on purpose")
    cases = ("{猫|犬}", "｛猫｜犬｝", "{2$$と$$猫|犬|鳥}", "{2$$、$$猫|犬|鳥}", "__季節__", "＿＿季節＿＿")
    ours_hits = sum(not set(normalize(case, seed=1).text) & set("{}｛｝|｜_＿$") for case in cases)
    print(f"variants: jpgen {ours_hits} of {len(cases)}, dynamicprompts {sum(map(_dynamicprompts, cases))}")
    weighted = ("赤い帽子の(猫:1.2)が走る", "(猫)++が走る", "（猫：１．２）が走る", "（（猫））が走る")
    print(f"weights in unspaced Japanese: jpgen {sum(map(_ours_weigh, weighted))} of {len(weighted)}, compel {sum(map(_compel_weighs, weighted))}\n")


def _dynamicprompts(text: str) -> bool:
    from dynamicprompts.generators import RandomPromptGenerator
    from dynamicprompts.wildcards import WildcardManager

    try:
        made = RandomPromptGenerator(wildcard_manager=WildcardManager(Path("prompts/wildcards")), seed=1).generate(text, 1)[0]
    except Exception:  # it raises its parser's own
        return False
    return not set(str(made)) & set("{}｛｝|｜_＿$")


def _ours_weigh(text: str) -> bool:
    return any(run == "猫" and weight != 1 for run, weight in normalize(text).spans)


def _compel_weighs(text: str) -> bool:
    from compel.prompt_parser import PromptParser

    parsed = str(PromptParser().parse_conjunction(text))
    return any(f"'猫':{weight}" in parsed.replace(" ", "") for weight in ("1.1", "1.2", "1.21", "1.2100000000000002"))


def _speed(test: list[dict[str, Any]], others: dict[str, Rival]) -> None:
    plain = [row["source"] for row in test if row["kind"] == "plain"]
    changed = [row["source"] for row in test if row["kind"] in ("negation", "request", "count")]
    from jpgen.prompt.morphology import words

    def fresh(text: str) -> Prompt:
        words.cache_clear()
        return normalize(text)

    still, moved = microseconds(normalize, plain), microseconds(fresh, changed)
    print(f"µs a prompt: jpgen {still:.0f} where nothing changes, {moved:.0f} with morphology; ", end="")
    print(", ".join(f"{name} {microseconds(other, plain):.1f}" for name, other in others.items()))


if __name__ == "__main__":
    main()
