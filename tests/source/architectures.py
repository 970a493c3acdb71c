"""Tiny models of many transformers architectures, made from their configurations."""

import inspect
from typing import Any

import torch

TEXT = [
    "gpt2",
    "gpt_neox",
    "gpt_bigcode",
    "opt",
    "bloom",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "stablelm",
    "olmo",
    "olmo2",
    "olmoe",
    "cohere",
    "cohere2",
    "granite",
    "granitemoe",
    "starcoder2",
    "xglm",
    "mpt",
    "persimmon",
    "nemotron",
    "glm",
    "glm4",
    "gpt_oss",
    "smollm3",
    "mamba",
    "rwkv",
    "falcon_mamba",
    "helium",
    "biogpt",
    "arcee",
    "bitnet",
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "electra",
    "deberta-v2",
    "mpnet",
    "xlm-roberta",
    "layoutlm",
    "convbert",
    "squeezebert",
    "ernie",
    "roformer",
    "fnet",
    "nystromformer",
    "t5",
    "mt5",
    "bart",
    "mbart",
    "pegasus",
    "marian",
]
OTHER = ["whisper", "vit", "deit", "beit", "dinov2", "wav2vec2", "hubert"]

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "max_target_positions"), 64),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "attention_hidden_size", "embedding_size"), 32
    ),
    **dict.fromkeys(("word_embed_proj_dim", "conv_dim_last"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), 2),
    **dict.fromkeys(
        ("decoder_layers", "num_decoder_layers", "num_key_value_heads", "num_experts_per_tok"), 2
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(
        ("encoder_attention_heads", "decoder_attention_heads", "state_size", "time_step_rank"), 4
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("head_dim", "d_kv", "patch_size", "num_mel_bins"), 8),
    **dict.fromkeys(("image_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "max_source_positions": 16,
    "num_channels": 3,
    "num_conv_pos_embeddings": 16,
    "conv_dim": (32,) * 7,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}


# transformers ships no usable types, hence `Any`.
def build(kind: str, attention: str = "eager") -> Any:
    """A model of an architecture with two layers of width 32."""
    from transformers import AutoConfig, AutoModel

    usual = AutoConfig.for_model(kind)
    config = AutoConfig.for_model(
        kind, **{name: size for name, size in SIZES.items() if hasattr(usual, name)}
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(config).eval()
    return model


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """What the model takes, one short sequence or one small image."""
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    given: dict[str, torch.Tensor] = {
        "pixel_values": {"pixel_values": torch.randn(1, 3, 16, 16)},
        "input_features": {"input_features": torch.randn(1, 8, 32)},
        "input_values": {"input_values": torch.randn(1, 800)},
    }.get(model.main_input_name, {"input_ids": ids})
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        given["decoder_input_ids"] = ids
    return given
