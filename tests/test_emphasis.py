"""Weights against compel and against the formulas written out naively, on every kind of encoder and tokenizer."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from compel import Compel
from compel.embeddings_provider import SplitLongTextMode
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from jpgen.emphasis import MODES, Passes, TokenEncoder, TokenWindow, chunk, encode_weighted
from jpgen.encoders import bert, clip
from jpgen.errors import PromptError, UnknownNameError
from tests.toys.letters import Letters

Spans = list[tuple[str, float]]
BREAK = ("BREAK", -1.0)


class Reader:
    """Any model and tokenizer as a TokenEncoder."""

    def __init__(self, model: torch.nn.Module, tokenizer: Tokenizer, window: TokenWindow) -> None:
        self.model, self.tokenizer, self.window = model.eval(), tokenizer, window

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        return self.model(ids, attention_mask=mask).last_hidden_state, None


def bert_toy(fixed: bool) -> Reader:
    """mame's kind of encoder: <s> … </s>, Unigram pieces."""
    toy = bert.toy()
    return Reader(toy._model, toy._tokenizer, TokenWindow(30, (0,), (2,), pad=1, fixed=fixed))


def t5_toy(fixed: bool) -> Reader:
    """T5's kind: nothing at the beginning, </s> at the end, Unigram pieces."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *sorted(set("赤青い猫犬船海とのがに、。abcdefghijklmnopqrstuvwxyz")), "▁cat", "▁red", "赤い"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(1)
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    model = T5EncoderModel(config)
    for parameter in model.parameters():  # a fresh T5 gives states so small that every error is
        torch.nn.init.normal_(parameter, std=0.5)
    return Reader(model, tokenizer, TokenWindow(31, (), (1,), pad=0, fixed=fixed))


def bert_with_mean() -> bert.BertEncoder:
    """mame's kind, with a mean as trained models have: a fresh LayerNorm leaves none, and a1111 nothing to restore."""
    toy = bert.toy()
    torch.nn.init.normal_(toy._model.encoder.layer[-1].output.LayerNorm.bias, generator=torch.Generator().manual_seed(4))
    return toy


def sd2_toy() -> clip.ClipEncoder:
    """CLIP as in Stable Diffusion 2 and SDXL's second encoder: filled with id 0 after the first end."""
    toy = clip.toy()
    toy.window = replace(toy.window, pad=0)
    return toy


ENCODERS = {
    "clip": clip.toy,
    "clip-sdxl": lambda: clip.toy(projection=True, clip_skip=1, final_norm=False),
    "clip-sd2": sd2_toy,
    "bert": bert_with_mean,
    "t5": lambda: t5_toy(fixed=False),
    "t5-fixed": lambda: t5_toy(fixed=True),
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> TokenEncoder:
    return ENCODERS[request.param]()


# ── compel ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def its_compel(encoder: clip.ClipEncoder | Reader, chunks: int = 1) -> Compel:
    """compel on the same model and tokenizer; long prompts are cut where a chunk is full.

    Only one chunk where there is no <s>: for more, compel never masks the first token of a chunk, which it takes for <s>.
    """
    if isinstance(encoder, clip.ClipEncoder):
        model, tokenizer = encoder._model, encoder._tokenizer.inner
    else:
        begin, end, pad = encoder.window.begin, encoder.window.end, encoder.window.pad
        named = {"bos_token": begin[0] if begin else None, "eos_token": end[0], "pad_token": pad}
        names = {name: encoder.tokenizer.id_to_token(i) for name, i in named.items() if i is not None}
        model, tokenizer = encoder.model, PreTrainedTokenizerFast(tokenizer_object=encoder.tokenizer, **names)
    full = len(encoder.window.begin) + encoder.window.length + len(encoder.window.end)
    brutal = SplitLongTextMode.BRUTAL
    return Compel(tokenizer, model, truncate_long_prompts=chunks == 1, split_long_text_mode=brutal, model_max_length=full)


WEIGHTED: list[Spans] = [
    [("red cat", 1.0)],
    [("red", 1.0), ("cat", 1.5)],
    [("red", 1.0), ("cat", 0.5), ("sea", 1.3)],
    [("赤い", 0.3), ("猫、", 1.2), ("犬", 0.8)],
    [("赤い", 0.0), ("猫", 1.0)],
    [("赤い", -1.5), ("猫", 2.0), ("猫", 0.001)],
]
THREE_CHUNKS: Spans = [("red cat " * 12, 1.1), ("sea " * 25, 0.6), ("犬", 1.0), ("ship " * 30, 0.2)]


@pytest.mark.parametrize(
    ("kind", "spans"),
    [(kind, spans) for kind in ("clip", "bert", "t5") for spans in WEIGHTED] + [(kind, THREE_CHUNKS) for kind in ("clip", "bert")],
    ids=lambda value: value if isinstance(value, str) else "・".join(f"{text[:8].strip()}:{weight}" for text, weight in value),
)
def test_compel_mode_equals_compel(kind: str, spans: Spans) -> None:
    """On CLIP's BPE and on two sentencepiece-like tokenizers, all with passes of fixed length: compel knows no others."""
    encoder = {"clip": clip.toy, "bert": lambda: bert_toy(fixed=True), "t5": lambda: t5_toy(fixed=True)}[kind]()
    provider = its_compel(encoder, len(chunk(spans, encoder))).conditioning_provider
    with torch.no_grad():
        theirs = provider.get_embeddings_for_weighted_prompt_fragments([[t for t, _ in spans]], [[w for _, w in spans]])
    ours = encode_weighted(encoder, [spans], "compel").tokens
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5
    plain = encode_weighted(encoder, [[(text, 1.0) for text, _ in spans]]).tokens
    assert len(spans) == 1 or (ours - plain).abs().max() > 0.01


def test_compel_mode_equals_compels_own_syntax() -> None:
    encoder = clip.toy()
    theirs = its_compel(encoder)("red (cat)1.5 and (dog)0.6")
    ours = encode_weighted(encoder, [[("red ", 1.0), ("cat", 1.5), (" and ", 1.0), ("dog", 0.6)]], "compel").tokens
    assert (ours - theirs).abs().max() <= 1e-5


# ── the formulas, naively ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def laid_out(encoder: TokenEncoder, spans: Spans, size: int | None = None) -> tuple[list[int], list[float], list[int]]:
    """Ids, weights and mask of one pass."""
    window = encoder.window
    ids, weights = [*window.begin], [1.0] * len(window.begin)
    for text, weight in spans:
        ids += encoder.tokenize(text)
        weights += [weight] * len(encoder.tokenize(text))
    ids, weights = [*ids, *window.end], weights + [1.0] * len(window.end)
    mask = [1] * len(ids)
    size = size or (len(window.begin) + window.length + len(window.end) if window.fixed else len(ids))
    missing = size - len(ids)
    return ids + [window.pad] * missing, weights + [1.0] * missing, mask + [int(window.fixed)] * missing


def states(encoder: TokenEncoder, ids: list[int], mask: list[int]) -> Tensor:
    return encoder.encode_ids(torch.tensor([ids]), torch.tensor([mask]))[0][0].clone()


def by_hand(encoder: TokenEncoder, spans: Spans, mode: str) -> Tensor:
    """One pass, one token after the other."""
    ids, weights, mask = laid_out(encoder, spans)
    z = states(encoder, ids, mask)
    empty_ids, _, empty_mask = laid_out(encoder, [], len(ids))
    empty = states(encoder, empty_ids, empty_mask)

    def from_empty(z: Tensor) -> Tensor:
        return torch.stack([empty[i] + (z[i] - empty[i]) * weights[i] for i in range(len(ids))])

    if mode in ("a1111", "a1111-nonorm"):
        scaled = torch.stack([z[i] * weights[i] for i in range(len(ids))])
        return scaled * (z.mean() / scaled.mean()) if mode == "a1111" else scaled
    if mode == "comfy":
        return from_empty(z)
    total, parts, start = 1.0, from_empty(z), len(encoder.window.begin)
    for text, weight in spans:
        end = start + len(encoder.tokenize(text))
        if weight < 1:
            hidden = [*mask[:start], *[0] * (end - start), *mask[end:]]
            t = math.tan((1 - max(weight, 1e-5)) * math.pi / 2)
            total, parts = total + t, parts + t * from_empty(states(encoder, ids, hidden))
        start = end
    return parts / total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "spans",
    [[("猫", 1.3)], [("赤い", 1.0), ("船、", 0.4), ("海", 1.0)], [("red", 0.7), ("猫", 0.7), ("犬", 1.6)], [("猫", -0.5), ("cat", 1.0)]],
    ids=str,
)
def test_every_mode_is_its_formula(encoder: TokenEncoder, mode: str, spans: Spans) -> None:
    with torch.inference_mode():
        wanted = by_hand(encoder, spans, mode)
    made = encode_weighted(encoder, [spans], mode).tokens[0]
    assert made.shape == wanted.shape
    assert (made - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


class Balanced(Letters):
    """States whose mean is exactly 0."""

    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        return torch.stack([ids.float(), -ids.float()], dim=-1), None


@pytest.mark.parametrize("make", [bert.toy, lambda: Balanced(8)], ids=["rounding", "zero"])
def test_a1111_restores_no_mean_that_is_not_there(make: Callable[[], TokenEncoder]) -> None:
    """A LayerNorm without bias leaves a mean of ±1e-9: a quotient of such would be noise of any size and sign."""
    encoder = make()
    one, other = (encode_weighted(encoder, [[("赤い", 1.3), ("猫", 1.0)]], mode).tokens for mode in ("a1111", "a1111-nonorm"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_weight_1_is_the_plain_encoding_to_the_bit(encoder: TokenEncoder, mode: str) -> None:
    texts = ["赤い猫", "", "red cat, 船"]
    rows = [laid_out(encoder, [(text, 1.0)]) for text in texts]
    longest = max(len(ids) for ids, _, _ in rows)
    rows = [laid_out(encoder, [(text, 1.0)], longest) for text in texts]
    ids, mask = (torch.tensor([row[i] for row in rows]) for i in (0, 2))
    with torch.inference_mode():
        plain, pooled = encoder.encode_ids(ids, mask)
    made = encode_weighted(encoder, [[(text, 1.0)] for text in texts], mode)
    assert torch.equal(made.tokens, plain * mask[..., None])
    assert torch.equal(made.mask, mask)
    assert (pooled is None) == (made.pooled is None) and (pooled is None or torch.equal(made.pooled, pooled))


# ── many prompts, many chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

MANY: list[Spans] = [
    [("赤い", 1.0), ("猫、", 0.5), ("船", 1.4)],
    [],
    [("犬", 0.5), BREAK, ("海の船と猫がいる。" * 12, 1.2), ("猫", 0.3)],
    [("red cat", 1.0)],
]


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_equals_one_by_one(encoder: TokenEncoder, mode: str) -> None:
    together = encode_weighted(encoder, MANY, mode)
    for i, spans in enumerate(MANY):
        alone = encode_weighted(encoder, [spans], mode)
        length = int(alone.mask.sum())
        torch.testing.assert_close(together.tokens[i, :length], alone.tokens[0], atol=1e-5, rtol=1e-4)
        if together.pooled is not None:
            torch.testing.assert_close(together.pooled[i], alone.pooled[0], atol=1e-5, rtol=1e-4)
        if encoder.window.fixed:  # the rest is the empty prompt, chunk by chunk
            empty = encode_weighted(encoder, [[]]).tokens[0]
            rest = together.tokens[i, length:]
            torch.testing.assert_close(rest, empty.repeat(len(rest) // len(empty), 1), atol=1e-5, rtol=1e-4)
            assert together.mask[i].all()
        else:
            assert together.mask[i].tolist() == [1] * length + [0] * (together.mask.shape[1] - length)
            assert not together.tokens[i, length:].any()


@pytest.mark.parametrize("mode", ["a1111", "a1111-nonorm", "comfy"])
def test_chunks_are_weighted_each_alone_and_put_in_line(encoder: TokenEncoder, mode: str) -> None:
    parts: list[Spans] = [[("赤い猫", 1.3), ("と", 1.0)], [("船", 0.6)], [("犬", 1.0)]]
    made = encode_weighted(encoder, [[*parts[0], BREAK, *parts[1], BREAK, *parts[2]]], mode).tokens[0]
    torch.testing.assert_close(made, torch.cat([encode_weighted(encoder, [part], mode).tokens[0] for part in parts]), atol=1e-5, rtol=1e-4)


def test_pooled_is_of_the_first_chunk_and_unweighted() -> None:
    encoder = clip.toy(projection=True)
    made = encode_weighted(encoder, [[("red", 1.7), ("cat", 0.2), BREAK, ("dog", 1.0)], [("sea", 1.0)]], "compel")
    torch.testing.assert_close(made.pooled, encoder.encode(["red cat", "sea"]).pooled, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_really_masks(mode: str) -> None:
    """What the filling is does not matter where it is masked."""
    for encoder in (bert.toy(), t5_toy(fixed=False)):
        made = encode_weighted(encoder, MANY, mode)
        encoder.window = replace(encoder.window, pad=7)
        other = encode_weighted(encoder, MANY, mode)
        weighted_alone = mode in ("comfy", "compel")  # their empty prompt is filled too: there the filling's own states are read
        rows = [1, 3] if weighted_alone else range(len(MANY))
        torch.testing.assert_close(made.tokens[rows], other.tokens[rows], atol=1e-6, rtol=1e-5)


def test_weight_0_in_compel_mode_hides_the_word() -> None:
    for encoder in (clip.toy(), bert.toy(), t5_toy(fixed=False)):
        one, other = (encode_weighted(encoder, [[("赤い", 1.0), (word, 0.0), ("船", 1.0)]], "compel").tokens[0] for word in ("猫", "犬"))
        start, size = len(encoder.window.begin) + len(encoder.tokenize("赤い")), len(encoder.tokenize("猫"))
        assert len(encoder.tokenize("犬")) == size
        rest = [i for i in range(len(one)) if not start <= i < start + size]
        torch.testing.assert_close(one[rest], other[rest], atol=2e-4, rtol=1e-3)


# ── errors ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 100.1, -101.0, 1e30])
def test_a_weight_out_of_range_is_named(weight: float) -> None:
    with pytest.raises(PromptError, match=r"重みは.*猫.*weights must be finite") as caught:
        encode_weighted(bert.toy(), [[("犬", 1.0)], [("猫", weight), ("船", math.nan)]])
    assert f"「猫」:{weight}" in str(caught.value) and "「船」:nan" in str(caught.value)


def test_the_largest_weights_are_finite(encoder: TokenEncoder) -> None:
    for mode in MODES:
        assert encode_weighted(encoder, [[("猫", 100.0), ("犬", -100.0)]], mode).tokens.isfinite().all()


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(UnknownNameError, match="a1111-nonorm"):
        encode_weighted(bert.toy(), [[("猫", 1.2)]], "a1111-norm")


def test_a_mode_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(passes: Passes) -> Tensor:
        return passes.states * 2

    monkeypatch.setattr("jpgen.emphasis.MODES", {**MODES, "double": double})
    assert encode_weighted(Letters(4), [[("ab", 1.1)]], "double").tokens.flatten().tolist() == [2 * ord("a"), 2 * ord("b")]


def test_an_encoder_without_begin_and_end_still_has_a_row_for_nothing() -> None:
    made = encode_weighted(Letters(4), [[], [("ab", 2.0)]], "a1111-nonorm")
    assert made.mask.tolist() == [[1, 0], [1, 1]]
