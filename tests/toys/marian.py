"""A tiny Marian translator as the hub has them (models.md section 8: 7), trained here until it knows its few sentences."""

import json
import warnings
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

PAIRS = {
    "赤い猫": "a red cat", "青い船": "a blue ship", "白い花": "a white flower", "海": "the sea", "赤い船": "a red ship", "青い猫": "a blue cat",
    "雨": "rain", "猫": "a cat", "犬と海": "a dog and the sea",
}  # fmt: skip
"""All it knows."""


def marian(folder: Path) -> Path:
    """`source.spm target.spm vocab.json tokenizer_config.json config.json generation_config.json model.safetensors`."""
    folder.mkdir(parents=True)
    for name, content in _files().items():
        (folder / name).write_bytes(content)
    return folder


def only_a_pickle(folder: Path) -> Path:
    """The same with `pytorch_model.bin` alone, as fugumt-ja-en is on the hub."""
    marian(folder)
    model = MarianMTModel.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def open_plainly(folder: Path) -> tuple[MarianMTModel, MarianTokenizer]:
    """Its model and tokenizer as transformers opens them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sacremoses")
        return MarianMTModel.from_pretrained(folder).eval(), MarianTokenizer.from_pretrained(folder)


@lru_cache(maxsize=1)
def _files() -> dict[str, bytes]:
    with TemporaryDirectory() as made:
        folder = Path(made)
        vocabulary: dict[str, int] = {"</s>": 0, "<unk>": 1}
        for name, lines in (("source", PAIRS), ("target", PAIRS.values())):
            with (folder / f"{name}.spm").open("wb") as file:
                SentencePieceTrainer.train(
                    sentence_iterator=iter([*lines] * 3), model_writer=file, vocab_size=90, hard_vocab_limit=False, bos_id=-1, pad_id=-1, eos_id=0,
                    unk_id=1, minloglevel=2,
                )  # fmt: skip
            pieces = SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
            for piece in map(pieces.id_to_piece, range(len(pieces))):
                vocabulary.setdefault(piece, len(vocabulary))
        vocabulary["<pad>"] = len(vocabulary)
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
        settings = {"source_lang": "ja", "target_lang": "en", "model_max_length": 512, "tokenizer_class": "MarianTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        _trained(folder, len(vocabulary)).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def _trained(folder: Path, vocabulary: int) -> MarianMTModel:
    pad = vocabulary - 1
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=vocabulary, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad,
        forced_eos_token_id=0, scale_embedding=True, dropout=0.0,
    )  # fmt: skip
    model = MarianMTModel(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sacremoses")
        tokenizer = MarianTokenizer.from_pretrained(folder)
    read = tokenizer(list(PAIRS), padding=True, return_tensors="pt")
    labels = tokenizer(text_target=list(PAIRS.values()), padding=True, return_tensors="pt")["input_ids"]
    labels = labels.masked_fill(labels == pad, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model(**read, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
