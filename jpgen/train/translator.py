"""Train the built-in translator: a small Marian (Junczys-Dowmunt et al. 2018, arXiv 1804.00344) from Japanese to English, for prompts.

A deep encoder reads, a shallow decoder writes (Kasai et al. 2021, arXiv 2006.10369); one SentencePiece vocabulary for both languages, one matrix
for both embeddings and the output (Press & Wolf 2017, arXiv 1608.05859). Everything is a function of the step, so that a run that was killed goes
on to the same losses.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel

from jpgen.train.alignment import bilingual_embedding
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.muon import Muon
from jpgen.train.parallel import CHUNK, Parallel, sentences
from jpgen.translate import is_japanese
from jpgen.translate.markers import MARKERS
from jpgen.weights import eight_bit_matrices, save_weights

log = logging.getLogger("jpgen.train")

WIDTH, ENCODER_LAYERS, DECODER_LAYERS, HEADS = 160, 3, 2, 4
ENCODER_HIDDEN, DECODER_HIDDEN = 640, 320
POSITIONS = 128
PIECES = 7000
VOCABULARY_CHUNKS = 8

TOKENS = 3000
"""Tokens of a batch, those of both languages."""

WORKERS = 2
"""Threads that each take a part of a batch: on a busy machine they wait for each other once a step, not once an operation."""

LEARNING_RATE = 4e-3
"""Of Muon; everything but the matrices of the layers has AdamW at half of it."""

WARM_UP = 60
SMOOTHING = 0.1
UNKNOWN = 1
NEVER = -1e4
"""Bias of the pieces that are no English: the softmax of training leaves them out, which is half of its work."""

DROPOUT = 0.0
EMA_DECAY = 0.995
SAVE_EVERY = 100
LOG_EVERY = 25


@dataclass(frozen=True)
class Batch:
    """Token ids [B, S] and [B, T], filled up with the padding id `pad` at the end; the second begin with it (the decoder's start)."""

    source: Tensor
    target: Tensor
    pad: int


def train_translator(data: Path, out: Path, *, steps: int, decay: int = 0) -> None:
    """Train until `steps` in all and write `out` as transformers' Marian layout, the weights in 8 bits.

    `data` is the folder of the Tanaka pairs (see `jpgen.train.parallel`). Resumes `out/translator.pt`; the last `decay` steps anneal, and their
    result is written but the checkpoint stays before them. Raises TrainingDataError.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the workers are the threads
    out.mkdir(parents=True, exist_ok=True)
    pairs = Parallel(data)
    vocabulary = make_vocabulary(pairs, out)
    written = written_pieces(vocabulary)
    model = new_model(len(vocabulary) + 1, written).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = new_optimizers(model)
    done = 0
    if not (out / "translator.pt").exists():
        start = bilingual_embedding(pairs, vocabulary, WIDTH)
        model.model.shared.weight.data[: len(start)] = start
        average.load_state_dict(model.state_dict())
    if state := load_state(out / "translator.pt"):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done = state["step"]
    curve, recent, workers = Curve(out / "translator.jsonl"), [], ThreadPoolExecutor(WORKERS)
    batches = Batches(pairs, vocabulary)
    for step in range(done, steps):
        batch = batches.at(step)
        loss = learn(model, batch, written, workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP, (steps - step) / max(decay, 1))
        list(workers.map(lambda optimizer, at=rate: updated(optimizer, at), optimizers))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        recent.append(loss)
        curve.count(len(batch.source))
        if (step + 1) % LOG_EVERY == 0:
            curve.row(step=step + 1, loss=float(np.mean(recent)), chunk=batches.chunk)
            recent.clear()
        if (step + 1) % SAVE_EVERY == 0 and step + 1 <= steps - decay:
            optimized = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizers": optimized, "step": step + 1}
            save_state(out / "translator.pt", state)
            write_translator(average, out)
    write_translator(average, out)


class Batches:
    """Batches by step: of each chunk the pairs sorted by length and cut into batches of about `TOKENS` tokens, these in random order."""

    def __init__(self, pairs: Parallel, vocabulary: SentencePieceProcessor) -> None:
        self._pairs, self._vocabulary = pairs, vocabulary
        self.chunk, self._first, self._batches = -1, 0, self._cut(-1)

    def at(self, step: int) -> Batch:
        """The batch of this step; steps are asked for in order."""
        while step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self.chunk += 1
            self._batches = self._cut(self.chunk)
        return self._batches[step - self._first]

    def _cut(self, number: int) -> list[Batch]:
        if number < 0:
            return []
        texts = self._pairs.chunk(number)
        eos, pad = self._vocabulary.eos_id(), len(self._vocabulary)
        encoded = [[[*ids, eos] for ids in self._vocabulary.encode([pair[side] for pair in texts])] for side in (0, 1)]
        rows = [(ja, [pad, *en]) for ja, en in zip(*encoded, strict=True) if len(ja) < POSITIONS and len(en) < POSITIONS]
        rows.sort(key=lambda row: (len(row[1]), len(row[0])))
        batches = [_filled(some, pad) for some in _groups(rows)]
        order = np.random.default_rng((12, number)).permutation(len(batches))
        return [batches[int(i)] for i in order]


def _groups(rows: Sequence[tuple[list[int], list[int]]]) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Rows that together are about `TOKENS` tokens, filling counted."""
    group: list[tuple[list[int], list[int]]] = []
    for row in rows:
        widest = sum(max(len(one[side]) for one in (*group, row)) for side in (0, 1)) if len(group) % 16 == 0 else 0
        if group and widest * len(group) > TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _filled(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> Batch:
    filled = []
    for side in (0, 1):
        width = max(len(row[side]) for row in rows)
        filled.append(torch.tensor([row[side] + [pad] * (width - len(row[side])) for row in rows]))
    return Batch(filled[0], filled[1], pad)


def written_pieces(vocabulary: SentencePieceProcessor) -> Tensor:
    """The ids of the pieces that a translation can have: those without kana and kanji."""
    return torch.tensor([i for i in range(len(vocabulary)) if not is_japanese(vocabulary.id_to_piece(i))])


def batch_loss(model: MarianMTModel, batch: Batch, written: Tensor) -> Tensor:
    """Cross entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567) of every token that is no filling, among the `written` ids."""
    inputs, wanted = batch.target[:, :-1], batch.target[:, 1:]
    states = model.model(input_ids=batch.source, attention_mask=batch.source != batch.pad, decoder_input_ids=inputs, use_cache=False)
    real = wanted != batch.pad
    logits = F.linear(states.last_hidden_state[real], model.lm_head.weight[written])
    places = torch.full((len(model.lm_head.weight),), UNKNOWN).scatter(0, written, torch.arange(len(written)))
    return F.cross_entropy(logits, places[wanted[real]], label_smoothing=SMOOTHING)


def learn(model: MarianMTModel, batch: Batch, written: Tensor, workers: Executor) -> float:
    """Put the gradient of the batch into the parameters, a part of it by each worker; gives the loss."""
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def part(first: int) -> tuple[float, tuple[Tensor, ...]]:
        loss = batch_loss(model, Batch(batch.source[first::WORKERS], batch.target[first::WORKERS], batch.pad), written)
        return loss.item(), torch.autograd.grad(loss, chosen)

    made = list(workers.map(part, range(min(WORKERS, len(batch.source)))))
    for parameter, *parts in zip(chosen, *(gradients for _, gradients in made), strict=True):
        parameter.grad = torch.stack(parts).mean(dim=0)
    return sum(loss for loss, _ in made) / len(made)


def new_model(vocabulary: int, written: Tensor) -> MarianMTModel:
    """Random weights, and a bias that leaves the `written` ids alone; the last id is the padding and the decoder's start."""
    config = MarianConfig(
        vocab_size=vocabulary, d_model=WIDTH, encoder_layers=ENCODER_LAYERS, decoder_layers=DECODER_LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=ENCODER_HIDDEN, decoder_ffn_dim=DECODER_HIDDEN, max_position_embeddings=POSITIONS,
        pad_token_id=vocabulary - 1, eos_token_id=0, decoder_start_token_id=vocabulary - 1, forced_eos_token_id=0, scale_embedding=True,
        dropout=DROPOUT, attention_dropout=0.0, activation_dropout=0.0, activation_function="relu",
    )  # fmt: skip
    model = MarianMTModel(config)
    model.final_logits_bias.fill_(NEVER)[:, written] = 0
    return model


def new_optimizers(model: MarianMTModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, a part of them for each worker; AdamW for the embedding, the biases and the norms."""
    inside = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    chosen = set(map(id, inside))
    others = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    adamw = torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0)
    return [*(Muon(inside[part::WORKERS], lr=LEARNING_RATE, weight_decay=0.02) for part in range(WORKERS)), adamw]


def updated(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let it take a step at this rate (AdamW at half of it) and drop the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = rate if isinstance(optimizer, Muon) else rate / 2
    optimizer.step()
    optimizer.zero_grad()


def make_vocabulary(pairs: Parallel, out: Path) -> SentencePieceProcessor:
    """The vocabulary of both languages in `out`, made if it is not there: `source.spm target.spm vocab.json tokenizer_config.json`."""
    path = out / "source.spm"
    if not (out / "tokenizer_config.json").exists():
        log.info("vocabulary of %d pairs", VOCABULARY_CHUNKS * CHUNK)
        with path.open("wb") as file:
            SentencePieceTrainer.train(
                sentence_iterator=sentences(pairs, VOCABULARY_CHUNKS), model_writer=file, vocab_size=PIECES, hard_vocab_limit=False,
                character_coverage=0.9999, normalization_rule_name="nmt_nfkc_cf", user_defined_symbols=[*MARKERS], bos_id=-1, pad_id=-1, eos_id=0,
                unk_id=1, max_sentencepiece_length=12, num_threads=1, minloglevel=1,
            )  # fmt: skip
        (out / "target.spm").write_bytes(path.read_bytes())
        made = SentencePieceProcessor(model_file=str(path))
        ids = {made.id_to_piece(i): i for i in range(len(made))} | {"<pad>": len(made)}
        (out / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), "utf-8")
        settings = {"source_lang": "ja", "target_lang": "en", "model_max_length": POSITIONS, "tokenizer_class": "MarianTokenizer"}
        (out / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return SentencePieceProcessor(model_file=str(path))


def write_translator(model: MarianMTModel, out: Path) -> None:
    """Write the weights in 8 bits, without what is tied or computed, and the settings."""
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    own = ("model.shared.weight", "final_logits_bias")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in own or ".layers." in name}
    save_weights(out / "model.safetensors", tensors, bits=eight_bit_matrices)
