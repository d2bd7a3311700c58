"""The blocks of a PixArt transformer without work that is the same for every step: exact, up to the rounding of another order of sums.

Stock diffusers modules stay as they are; within `lean` their blocks run by another forward. What it saves: the caption's projection and the keys
and values of cross-attention are computed once for a prompt; where a text is short, its keys are folded into the query's weights and its values
into those of the output, and two matrices of [width, width] become two of [width, heads × tokens]; the norm's scale and shift are one kernel;
masks are prepared once; tanh-GELU in fp32 on a CPU is computed by a sigmoid, for which torch has the faster kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from diffusers.models.activations import GELU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from jpgen.backbones.forwards import Forward, replaced

TANH_SCALE = math.sqrt(8 / math.pi)
"""gelu(x) ≈ x·sigmoid(TANH_SCALE·(x + CUBIC·x³)): the tanh form, for (1 + tanh u)/2 = sigmoid(2u)."""

CUBIC = 0.044715


@contextmanager
def lean(transformer: PixArtTransformer2DModel) -> Iterator[None]:
    """Within, the transformer's blocks run without repeated work, for prompts and masks that stay in place; others run as they are.

    Every row of a forward must be at one timestep, as in every sampler; what is not stock (an adapter in a block, another processor) is let be.
    """
    with ExitStack() as stack:
        if not torch.is_grad_enabled() and all(_is_stock(block) for block in transformer.transformer_blocks):
            if transformer.caption_projection is not None:
                stack.enter_context(replaced(transformer.caption_projection, _once))
            for block in transformer.transformer_blocks:
                stack.enter_context(replaced(block, partial(_leaned, block)))
        yield


def _leaned(block: BasicTransformerBlock, _forward: Forward) -> Forward:
    return _Lean(block)


def _is_stock(block: nn.Module) -> bool:
    """Whether this is a block of PixArt as diffusers makes it: plain linear layers and attention."""
    if type(block) is not BasicTransformerBlock or block.norm_type != "ada_norm_single" or block.attn2 is None or block.pos_embed is not None:
        return False
    attentions = (block.attn1, block.attn2)
    linear = [layer for one in attentions for layer in (one.to_q, one.to_k, one.to_v, one.to_out[0])]
    plain = all(type(layer) is nn.Linear for layer in linear)
    return plain and not block.only_cross_attention and block._chunk_size is None and all(_is_plain(attention) for attention in attentions)


def _is_plain(attention: Attention) -> bool:
    parts = (attention.group_norm, attention.norm_q, attention.norm_k, attention.norm_cross, attention.spatial_norm, attention.added_kv_proj_dim)
    flags = (attention.residual_connection, attention.fused_projections, attention.upcast_attention, attention.rescale_output_factor != 1)
    dropping = attention.to_out[1].p > 0 and attention.training
    return type(attention.processor) is AttnProcessor2_0 and not any(part is not None for part in parts) and not any(flags) and not dropping


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _once(forward: Forward) -> Forward:
    """The module, asked once for each caption."""
    known: dict[Any, tuple[Tensor, Tensor]] = {}

    def run(caption: Tensor) -> Tensor:
        key = _place(caption)
        if key not in known:
            known[key] = caption, forward(caption)  # the caption too, so that nothing else comes to lie in its place
        return known[key][1]

    return run


class _Lean:
    """The forward of one block; a prompt's part in it is kept as long as this is."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        self._block = block
        self._table = block.scale_shift_table + block.scale_shift_table.new_tensor([0, 1, 0, 0, 1, 0])[:, None]  # the two scales act as 1 + scale
        self._texts: dict[Any, tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]] = {}

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """What the block's own forward gives [rows, tokens, width]."""
        block = self._block
        if attention_mask is not None or encoder_hidden_states is None or timestep is None or cross_attention_kwargs:
            return type(block).forward(
                block, hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, cross_attention_kwargs, class_labels
            )
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (self._table + timestep[0].view(6, -1)).unbind()
        size = hidden_states.shape[-1:]
        seen = F.layer_norm(hidden_states, size, scale, shift, block.norm1.eps)
        hidden_states = torch.addcmul(hidden_states, gate, _to_itself(block.attn1, seen))
        hidden_states = self._to_text(encoder_hidden_states, encoder_attention_mask)(hidden_states)
        seen = F.layer_norm(hidden_states, size, scale_ff, shift_ff, block.norm2.eps)
        return torch.addcmul(hidden_states, gate_ff, _feed_forward(block.ff, seen))

    def _to_text(self, text: Tensor, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
        key = _place(text)
        if key not in self._texts or (mask is None) != (self._texts[key][1] is None):
            self._texts[key] = text, mask, _reading(self._block.attn2, text, mask)
        return self._texts[key][2]


def _heads(tensor: Tensor, heads: int) -> Tensor:
    """[rows, tokens, width] as [rows, heads, tokens, width / heads]."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def _to_itself(attention: Attention, states: Tensor) -> Tensor:
    query, key, value = (_heads(layer(states), attention.heads) for layer in (attention.to_q, attention.to_k, attention.to_v))
    made = F.scaled_dot_product_attention(query, key, value)
    return attention.to_out[0](made.transpose(1, 2).flatten(2))


def _reading(attention: Attention, text: Tensor, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What cross-attention to this text adds to states, as a function of them: states in, sum out. `mask`: the bias [rows, 1, tokens]."""
    key, value = (_heads(layer(text), attention.heads) for layer in (attention.to_k, attention.to_v))
    out = attention.to_out[0]
    if attention.heads * text.shape[1] < out.out_features:
        return _folded(attention, key, value, mask)
    bias = None if mask is None else mask[:, None]

    def add(states: Tensor) -> Tensor:
        query = _heads(attention.to_q(states), attention.heads)
        return states + out(F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2))

    return add


def _folded(attention: Attention, key: Tensor, value: Tensor, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """softmax(x·(Wq·K) + b)·(V·Wo): the keys folded into the query's weights, the values into those of the output, computed in fp32."""
    heads, tokens = key.shape[1:3]
    dtype, query, out = key.dtype, attention.to_q, attention.to_out[0]
    key, value = key.float() / math.sqrt(key.shape[-1]), value.float()
    asking = query.weight.float().unflatten(0, (heads, -1))  # heads, of a head, width
    given = out.weight.float().unflatten(1, (heads, -1))  # width, heads, of a head
    before = torch.einsum("hcw,rhtc->rwht", asking, key).flatten(2).to(dtype)
    after = torch.einsum("rhtc,whc->rhtw", value, given).flatten(1, 2).to(dtype)
    bias = key.new_zeros(len(key), heads, tokens)
    if query.bias is not None:
        bias = bias + torch.einsum("hc,rhtc->rht", query.bias.float().unflatten(0, (heads, -1)), key)
    if mask is not None:
        bias = bias + mask
    bias = bias.flatten(1)[:, None].to(dtype)

    def add(states: Tensor) -> Tensor:
        attended = torch.baddbmm(bias, states, before).unflatten(-1, (heads, tokens)).softmax(-1).flatten(2)
        return torch.baddbmm(states if out.bias is None else states + out.bias, attended, after)

    return add


def _feed_forward(ff: Any, states: Tensor) -> Tensor:
    first = ff.net[0]
    if type(first) is not GELU or first.approximate != "tanh" or states.dtype != torch.float32 or states.device.type != "cpu":
        return ff(states)
    made = first.proj(states)
    inner = made * made
    torch.add(inner.new_tensor(TANH_SCALE), inner, alpha=TANH_SCALE * CUBIC, out=inner)
    made = inner.mul_(made).sigmoid_().mul_(made)
    for layer in ff.net[1:]:
        made = layer(made)
    return made
