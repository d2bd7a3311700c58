"""PixArt without repeated work, packed weights, previews, tiles and placement: the same numbers as stock diffusers modules give."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, PixArtTransformer2DModel
from torch import nn

from jpgen.backbones import packing as packing_file
from jpgen.backbones import pixart, placement, sd
from jpgen.backbones.lean import lean
from jpgen.backbones.packing import Packing, packing, pays, supported
from jpgen.backbones.preview import Preview, load_tiny
from jpgen.backbones.unet import toy_vae
from jpgen.catalog import Entry
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.types import SamplingConfig

CONFIG = SamplingConfig(64, 64, 2, 2.0)


def transformer(*, heads: int = 4, sigma: bool = False, activation: str = "gelu-approximate", conditions: bool = False) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    made = PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=16, num_layers=3, cross_attention_dim=16 * heads, caption_channels=24, in_channels=4,
        out_channels=8 if sigma else 4, sample_size=128 if conditions else 8, activation_fn=activation, use_additional_conditions=conditions,
    )  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)  # gates and tables too, which start near nothing
    return made.eval().requires_grad_(False)


def given(rows: int, tokens: int, *, conditions: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    mask[0, tokens // 2 :] = 0
    added = {"resolution": torch.tensor([[64.0, 64.0]] * rows), "aspect_ratio": torch.tensor([[1.0]] * rows)}
    return {
        "hidden_states": torch.randn(rows, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(rows, tokens, 24, generator=generator), "encoder_attention_mask": mask,
        "timestep": torch.full((rows,), 400), "added_cond_kwargs": added if conditions else {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }  # fmt: skip


@pytest.mark.parametrize("tokens", [3, 40])  # folded, and not
@pytest.mark.parametrize(
    "kind", [{}, {"sigma": True}, {"activation": "geglu"}, {"activation": "gelu"}, {"conditions": True, "heads": 3}, {"heads": 2}], ids=str
)
def test_lean_blocks_give_what_stock_blocks_give(tokens: int, kind: dict[str, Any]) -> None:
    model = transformer(**kind)
    with torch.inference_mode():
        for rows in (2, 6):
            call = given(rows, tokens, conditions="conditions" in kind)
            wanted = model(**call)[0]
            with lean(model):
                assert sum("forward" in vars(module) for module in model.modules()) == 4  # three blocks and the caption's projection
                for time in (400, 399):  # the second forward finds the prompt's part
                    call["timestep"] = torch.full((rows,), time)
                    made = model(**call)[0]
                other = given(rows, tokens, conditions="conditions" in kind)
                other["encoder_hidden_states"] = other["encoder_hidden_states"] + 1
                changed = model(**other)[0]
            call["timestep"] = torch.full((rows,), 399)
            torch.testing.assert_close(made, model(**call)[0], rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
            torch.testing.assert_close(changed, model(**other)[0], rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
            assert not torch.equal(made, wanted)
        assert not any("forward" in vars(module) for module in model.modules())


def test_a_prompt_is_read_once() -> None:
    model = transformer()
    seen: list[int] = []
    for module in (model.transformer_blocks[0].attn2.to_k, model.caption_projection.linear_1):
        module.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode(), lean(model):
        call = given(2, 5)
        for _ in range(3):
            model(**call)
    assert len(seen) == 2


def test_an_adapter_in_a_block_turns_it_off() -> None:
    model = transformer()
    model.transformer_blocks[1].attn2.to_q = nn.Sequential(model.transformer_blocks[1].attn2.to_q)
    with torch.inference_mode(), lean(model):
        assert not any("forward" in vars(module) for module in model.modules())
    with lean(transformer()) as _:
        pass  # and where gradients are wanted


def test_bf16_stays_within_its_rounding() -> None:
    model = transformer().to(torch.bfloat16)
    call = given(2, 3)
    call |= {name: call[name].to(torch.bfloat16) for name in ("hidden_states", "encoder_hidden_states")}
    with torch.inference_mode():
        wanted = model(**call)[0].float()
        with lean(model):
            made = model(**call)[0].float()
    assert (made - wanted).abs().mean() < 0.05 * wanted.abs().mean()


# ── packed weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(192, 192, 3, padding=1)
        self.down = nn.Conv2d(192, 192, 3, stride=2, padding=1, bias=False)
        self.linear = nn.Linear(192, 1536)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.down(self.conv(x)).flatten(2).transpose(1, 2))


@pytest.fixture
def eager_to_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_file, "MOST_POSITIONS", {torch.float32: (512, 512), torch.bfloat16: (512, 512)})


@pytest.mark.usefixtures("eager_to_pack")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_packed_weights_give_what_plain_ones_give(dtype: torch.dtype, layout: torch.memory_format) -> None:
    there = supported(dtype)  # torch packs bf16 on a CPU with AVX-512 alone; fp32 everywhere
    assert there or dtype == torch.bfloat16
    model = Layers().to(dtype).to(memory_format=layout)
    chosen = Packing(2**30, works=there)
    with torch.inference_mode():
        for side in (8, 6, 8):
            x = torch.randn(2, 192, side, side, dtype=dtype)
            wanted = model(x)
            with chosen.over(model):
                made = model(x)
            scale = float(wanted.abs().max())
            torch.testing.assert_close(made, wanted, rtol=0, atol=(1e-5 if dtype == torch.float32 else 3e-2) * scale)
    layers = (model.conv, model.down, model.linear) if there else ()
    assert chosen.checked is chosen.works is there and set(chosen.kept) == set(layers)
    assert chosen.used == sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)


@pytest.mark.usefixtures("eager_to_pack")
def test_a_changed_weight_is_packed_again() -> None:
    model, chosen = Layers(), Packing(2**30)
    x = torch.randn(1, 192, 8, 8)
    with torch.inference_mode():
        for _ in range(2):
            with chosen.over(model):
                made = model(x)
            torch.testing.assert_close(made, model(x), rtol=1e-5, atol=1e-4)
            model.conv.weight.data.add_(0.5)  # as fusing an adapter does


@pytest.mark.usefixtures("eager_to_pack")
def test_memory_is_bounded_and_a_wrong_result_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Layers(), torch.randn(1, 192, 8, 8)
    small = Packing(model.conv.weight.numel() * 4)
    with torch.inference_mode():
        wanted = model(x)
        with small.over(model):
            assert torch.allclose(model(x), wanted, atol=1e-4)
        assert list(small.kept) == [model.conv]
        apply = packing_file._apply
        monkeypatch.setattr(packing_file, "_apply", lambda layer, x, weight: apply(layer, x, weight) + 1)
        wrong = Packing(2**30)
        with wrong.over(model):
            assert torch.equal(model(x), wanted)
        assert not wrong.works


def test_where_packing_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, linear = nn.Conv2d(640, 640, 3, padding=1), nn.Linear(640, 640)
    with torch.inference_mode():
        assert pays(conv, torch.zeros(1, 640, 16, 16)) and pays(conv, torch.zeros(2, 640, 8, 8))
        assert not pays(conv, torch.zeros(1, 640, 32, 32)) and not pays(conv, torch.zeros(4, 640, 16, 16))
        assert not pays(linear, torch.zeros(1, 16, 640))  # fp32: MKL needs no packing
        assert pays(linear.bfloat16(), torch.zeros(1, 1024, 640, dtype=torch.bfloat16))
        assert not pays(linear, torch.zeros(2, 1024, 640, dtype=torch.bfloat16))
    assert not pays(conv, torch.zeros(1, 640, 16, 16))  # where gradients are wanted
    real = supported
    monkeypatch.setattr(packing_file, "supported", lambda dtype: dtype == torch.bfloat16 or real(dtype))
    for amx, works in ((False, False), (True, True)):
        monkeypatch.setattr(packing_file, "has_amx", lambda amx=amx: amx)
        monkeypatch.setattr(packing_file, "has_avx512_bf16", lambda: False)
        assert packing(torch.bfloat16).works is works and packing(torch.float32).works
    monkeypatch.setattr(packing_file, "supported", real)
    supported.cache_clear()
    monkeypatch.setattr(packing_file, "_pack", lambda *_: (_ for _ in ()).throw(NotImplementedError("gone")))
    assert not packing(torch.float32).works
    supported.cache_clear()


# ── previews ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def decoder(vae: AutoencoderKL) -> Any:
    return lambda latents: vae.decode(latents).sample


def test_a_fitted_matrix_is_the_least_squares_one() -> None:
    """A decoder that is linear itself is found exactly."""
    torch.manual_seed(0)
    mix, offset = torch.randn(4, 3) * 0.1, torch.tensor([0.1, -0.2, 0.3])
    preview = Preview(
        lambda latents: (torch.einsum("rcyx,cp->rpyx", latents, mix) + offset[:, None, None]).repeat_interleave(8, 2).repeat_interleave(8, 3), None
    )
    latents = torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(preview.pictures(latents), torch.einsum("rcyx,cp->rpyx", latents, mix) + offset[:, None, None], atol=1e-5, rtol=0)
    assert [image.size for image in preview.images(latents, SamplingConfig(40, 48, 1, 1.0))] == [(40, 48)] * 2


def test_the_decoder_runs_for_the_first_preview_alone() -> None:
    vae, calls = toy_vae().eval(), []
    preview = Preview(lambda latents: (calls.append(latents.shape), vae.decode(latents).sample)[1], vae)
    for _ in range(3):
        preview.images(torch.randn(1, 4, 64, 64), SamplingConfig(512, 512, 1, 1.0))
    assert sum(shape[0] * shape[2] * shape[3] for shape in calls) <= 64 * 64 and {shape[2:] for shape in calls} == {torch.Size([12, 12])}


def test_mames_previews_are_its_pictures() -> None:
    backbone = pixart.toy()
    latents = torch.randn(1, 16, 4, 4)
    with torch.inference_mode():
        shown, whole = backbone._preview.images(latents, CONFIG)[0], backbone.decode(latents)[0]
    assert abs(np.asarray(shown, int) - np.asarray(whole, int)).max() <= 1


def test_a_tiny_autoencoder_is_used(tmp_path: Any) -> None:
    torch.manual_seed(0)
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    tiny.save_pretrained(tmp_path / "tiny")
    whole = AutoencoderTiny().eval()
    whole.save_pretrained(tmp_path / "whole")
    latents = torch.randn(1, 4, 8, 8)

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    for part, of in (("tiny", tiny), ("whole/diffusion_pytorch_model.safetensors", whole)):
        entry = Entry("toy", "sd", path=str(tmp_path), default=CONFIG, parts={"preview_vae": part})
        loaded = load_tiny(entry, 4, torch.float32)
        made = Preview(refuse, toy_vae(), loaded).pictures(latents)
        with torch.inference_mode():
            torch.testing.assert_close(made, of.decode(latents).sample, atol=1e-5, rtol=1e-4)
    entry = Entry("toy", "sd", path=str(tmp_path), default=CONFIG, parts={"preview_vae": "tiny"})
    with pytest.raises(IncompatibleError, match=r"4 latent channels.*16"):
        load_tiny(entry, 16, torch.float32)
    toy_vae().save_pretrained(tmp_path / "kl")
    entry = Entry("toy", "sd", path=str(tmp_path), default=CONFIG, parts={"preview_vae": "kl/diffusion_pytorch_model.safetensors"})
    with pytest.raises(WeightsError, match="no AutoencoderTiny"):
        load_tiny(entry, 4, torch.float32)
    assert load_tiny(Entry("toy", "sd", path=str(tmp_path), default=CONFIG), 4, torch.float32) is None


# ── placement ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("free", "called"), [(2**40, "to"), (2**31 + 1_500_000, "enable_model_cpu_offload"), (100, "enable_sequential_cpu_offload")])
def test_a_gpu_is_filled_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch, free: int, called: str) -> None:
    pipeline, calls = sd.toy()._pipeline, []
    monkeypatch.setattr(placement, "memory_available", lambda _device: free)
    for name in ("to", "enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        monkeypatch.setattr(type(pipeline), name, lambda _self, *args, name=name, **kwargs: calls.append((name, *args, *kwargs.values())))
    sizes = [placement.weight_bytes(part) for part in (pipeline.unet, pipeline.vae)]
    assert max(sizes) < 1_500_000 < sum(sizes)
    placement.place(pipeline, torch.device("cuda"))
    assert calls == [(called, torch.device("cuda"))]
    placement.place(pipeline, torch.device("cpu"))
    assert len(calls) == 1


def test_optimize_acts_on_cuda_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pipeline, calls = sd.toy()._pipeline, []
    monkeypatch.setattr(type(pipeline.unet), "fuse_qkv_projections", lambda _self: calls.append("fuse"))
    monkeypatch.setattr(type(pipeline.unet), "compile_repeated_blocks", lambda _self, **kwargs: calls.append(("compile", kwargs)))
    assert placement.optimise(pipeline, torch.device("cpu")) == () and "CUDA" in caplog.text and not calls
    done = placement.optimise(pipeline, torch.device("cuda"))
    assert calls == ["fuse", ("compile", {"fullgraph": True})] and len(done) == 4
    assert pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(PixArtTransformer2DModel, "fuse_qkv_projections", lambda _self: calls.append("fuse"))
    assert "compiled blocks" not in placement.optimise(pixart.toy()._pipeline, torch.device("cuda"))  # it has no repeated blocks to name
