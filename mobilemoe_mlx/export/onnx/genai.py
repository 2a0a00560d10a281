"""What onnxruntime-genai is told: genai_config.json, and the class of the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.end_tokens import GENERATION_CONFIG
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.onnx_folder import names
from mobilemoe_mlx.tokenizer_file import decoder_of, open_tokenizer

# Tokens of a prompt that are computed at once: `GroupQueryAttention` holds a score for each of
# them, each position and each head. Our own layers cut a prompt themselves.
_CHUNK = 512

# Settings of a checkpoint's generation_config.json that genai has under the same names.
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def genai_config(
    checkpoint: Checkpoint,
    options: ExportOptions,
    model_file: str,
    head_size: int,
    operators: str | None,
) -> dict[str, Any]:
    """genai_config.json's content.

    `head_size`: features of a head in the cache. `operators`: the file of custom operators beside
    the model, if it needs one.
    """
    args = checkpoint.args
    ends = list(checkpoint.end_token_ids())
    session: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    if operators is not None:
        session["custom_ops_library"] = operators
        # All work is in our own operators, which have threads of their own; the runtime's would
        # only wait beside them.
        session["intra_op_num_threads"] = 1
    model = {
        "type": "decoder",
        "vocab_size": args.vocab_size,
        "context_length": options.context,
        "eos_token_id": ends,
        # Padding goes to the right of a text, so any token will do that does not end one.
        "pad_token_id": _padding(checkpoint, ends),
        "decoder": {
            "session_options": session,
            "filename": model_file,
            "hidden_size": args.hidden_size,
            "head_size": head_size,
            "num_attention_heads": args.num_attention_heads,
            "num_key_value_heads": args.num_key_value_heads,
            "num_hidden_layers": args.num_hidden_layers,
            "inputs": {
                "input_ids": names.INPUT_IDS,
                "attention_mask": names.ATTENTION_MASK,
                "past_key_names": names.PAST_KEY,
                "past_value_names": names.PAST_VALUE,
            },
            "outputs": {
                "logits": names.LOGITS,
                "present_key_names": names.PRESENT_KEY,
                "present_value_names": names.PRESENT_VALUE,
            },
        },
    }
    if args.bos_token_id is not None:
        model["bos_token_id"] = args.bos_token_id
    search = {
        **_sampling(checkpoint.folder),
        "max_length": options.context,
        "past_present_share_buffer": True,
    }
    if operators is None:  # ours cut long prompts themselves
        search["chunk_size"] = min(_CHUNK, options.context)
    return {"model": model, "search": search}


def tokenizer_class(folder: Path) -> str:
    """The `tokenizer_class` by which genai makes of tokenizer.json the tokens that it describes.

    genai chooses its code by this name, and with the wrong one it encodes some texts otherwise and
    says nothing: pieces of SentencePiece need one of the classes that had it, and bytes spelled as
    letters the general one. Raises UserError for a tokenizer of neither kind.
    """
    decoder = decoder_of(open_tokenizer(folder)) or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if "ByteFallback" in kinds:
        return "GemmaTokenizer"
    if "ByteLevel" in kinds:
        return "PreTrainedTokenizerFast"
    raise UserError(
        f"{folder / 'tokenizer.json'} is neither SentencePiece's nor of bytes (its decoder is "
        f"{decoder.get('type')}), and onnxruntime-genai would encode texts otherwise: export a "
        "checkpoint with another tokenizer, or without one."
    )


def _padding(checkpoint: Checkpoint, ends: list[int]) -> int:
    args = checkpoint.args
    if args.bos_token_id is not None:
        return args.bos_token_id
    return next(token for token in range(args.vocab_size) if token not in ends)


def _sampling(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION_CONFIG
    content = files.read_json(path) if path.is_file() else {}
    found = {name: content[name] for name in _SAMPLING if content.get(name) is not None}
    return {"do_sample": False, **found}
