"""MobileMoE (arXiv 2605.27358) for Hugging Face transformers, with PyTorch 2.6 or later.

Tried with transformers 5.7, 5.15, 5.23 and 5.24. A reference for reading and for experiments.

Both published layouts load under their own tensor names. A BF16 checkpoint becomes plain modules.
An INT4 checkpoint stays as small as its file: codes and float16 scales are unpacked where they are
used, in float32, where that is exact, and rounded to the type of the activations (`dtype`; with
float32 nothing is lost). `model.dequantize()` expands it once and for all, for speed or to train
it. `save_pretrained` writes the published tensors again.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

# Relative, as transformers asks of files that lie in a checkpoint folder.
from .configuration_mobilemoe import MobileMoEConfig  # noqa: TID252
from .int4_mobilemoe import Int4Embedding, Int4Module  # noqa: TID252
from .layers_mobilemoe import (  # noqa: TID252
    Int4Experts,
    MobileMoEDecoderLayer,
    MobileMoEExperts,
    MobileMoERMSNorm,
    MobileMoERouter,
    causal_mask,
    rope_frequencies,
    rotations,
)

# What outputs call the cache: `cache` since transformers 5.24, before that `past_key_values`.
_FIELDS = inspect.signature(MoeModelOutputWithPast).parameters
_CACHE = "cache" if "cache" in _FIELDS else "past_key_values"


class MobileMoEPreTrainedModel(PreTrainedModel):
    """What loading and saving need to know."""

    config_class = MobileMoEConfig
    config: MobileMoEConfig
    base_model_prefix = "model"
    _no_split_modules = ("MobileMoEDecoderLayer",)
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MobileMoERouter | MobileMoEExperts):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=self.config.initializer_range)

    def dequantize(self, dtype: torch.dtype | None = None) -> MobileMoEPreTrainedModel:
        """Expand INT4 modules in place into float ones of `dtype` (default: the model's).

        Of float32 the values are exact. What was INT4 then trains, and is saved in the BF16 layout.
        Returns the model.
        """
        if self.config.quantization is None:
            raise ValueError("The model holds no INT4 weights.")
        dtype = dtype or self.dtype
        for parent in [*self.modules()]:
            for name, module in [*parent.named_children()]:
                if isinstance(module, Int4Module):
                    setattr(parent, name, _expanded(module, self.config, dtype))
        self.config.quantization = None
        return self


def _expanded(module: Int4Module, config: MobileMoEConfig, dtype: torch.dtype) -> nn.Module:
    """The float module of an INT4 one."""
    new: nn.Module
    if isinstance(module, Int4Experts):
        weights = dict(
            zip(("gate_up_proj", "down_proj"), module.matrices(slice(None)), strict=True)
        )
        with torch.device("meta"):
            new = MobileMoEExperts(config)
    else:
        weights = {"weight": module.weight}
        rows, columns = module.weight.shape
        with torch.device("meta"):
            if isinstance(module, Int4Embedding):
                new = nn.Embedding(rows, columns)
            else:
                new = nn.Linear(columns, rows, bias=False)
    for name, weight in weights.items():
        setattr(new, name, nn.Parameter(weight.to(dtype)))
    return new.train(module.training)


class MobileMoEModel(MobileMoEPreTrainedModel):
    """Embedding, layers and final norm."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__(config)
        kind = nn.Embedding if config.quantization is None else Int4Embedding
        self.embed_tokens = kind(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(MobileMoEDecoderLayer(config, n) for n in layers)
        self.norm = MobileMoERMSNorm(config.hidden_size, config.rms_norm_eps)
        self.frequencies = rope_frequencies(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast | tuple[Any, ...]:
        """input_ids or inputs_embeds [batch, tokens, hidden] -> hidden states after the last norm.

        `hidden_states`: the embedding and the residual stream after each layer, the last after the
        last norm. `past_key_values` is the older name of `cache`.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give one of input_ids and inputs_embeds.")
        cache = past_key_values if cache is None else cache
        if cache is None and _or(use_cache, config.use_cache and not self.training):
            cache = DynamicCache(config=config)
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(
                f"The cache is a {type(cache).__name__}; this reference takes a DynamicCache."
            )
        wants_attentions = _or(output_attentions, config.output_attentions)
        if wants_attentions and config._attn_implementation != "eager":
            raise ValueError(
                "Attention weights are only computed by a model that was loaded with "
                "attn_implementation='eager'."
            )
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = x.to(self.norm.weight.dtype)
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        rotation = rotations(position_ids, self.frequencies)
        mask = causal_mask(attention_mask, x.shape[1], past, x.device)
        hidden, attentions, router_logits = [x], [], []
        for layer in self.layers:
            x, attention, logits = layer(x, rotation, mask, cache)
            hidden.append(x)
            attentions.append(attention)
            router_logits.append(logits)
        x = self.norm(x)
        hidden[-1] = x
        wants_hidden = _or(output_hidden_states, config.output_hidden_states)
        wants_router = _or(output_router_logits, config.output_router_logits)
        output = MoeModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=tuple(hidden) if wants_hidden else None,
            attentions=tuple(attentions) if wants_attentions else None,
            router_logits=tuple(router_logits) if wants_router else None,
            **{_CACHE: cache},
        )
        return output if _or(return_dict, config.return_dict) else output.to_tuple()


class MobileMoEForCausalLM(MobileMoEPreTrainedModel, GenerationMixin):
    """The language model. Its output head is the embedding."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__(config)
        self.model = MobileMoEModel(config)
        self.vocab_size = config.vocab_size
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | tuple[Any, ...]:
        """`MobileMoEModel`'s arguments -> logits [batch, tokens, vocabulary], a loss of `labels`.

        `labels` [batch, tokens] are the tokens themselves, -100 where they do not count; each is
        compared with the logits before it, and the loss is the mean. `logits_to_keep`: only those
        of that many last tokens (0: all), or of these positions.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values if cache is None else cache,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
            output_router_logits,
            return_dict=True,
        )
        keep = logits_to_keep
        kept = slice(-keep, None) if isinstance(keep, int) and keep else keep
        kept = slice(None) if isinstance(kept, int) else kept
        x = outputs.last_hidden_state[:, kept]
        logits = F.linear(x, self.model.embed_tokens.weight.to(x.dtype))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        output = MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            **{_CACHE: outputs.get(_CACHE)},
        )
        return output if _or(return_dict, self.config.return_dict) else output.to_tuple()


def _or(value: bool | None, default: bool | None) -> bool:
    return bool(default if value is None else value)


__all__ = ["MobileMoEForCausalLM", "MobileMoEModel", "MobileMoEPreTrainedModel"]
