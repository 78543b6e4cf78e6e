"""Which fields of our requests an Open Responses request can say, and where; the others have one value there.

`test_open_responses_from_native.py` holds the code to it, and `scripts/generate_contracts.py` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensoryard.proto as proto


@dataclass
class Conversion:
    """One class of ours: its fields by their place in the body, and those without, by the value they must have."""

    kind: type
    said: dict[str, str]
    unsaid: dict[str, object]


CONVERSIONS = [
    Conversion(
        proto.TextGenerationRequest,
        {
            "request_id": "the request's own",
            "model_name": "`model`",
            "messages": "`input`: exactly one, of the user, the assistant or the system",
            "images": "parts of `input`, as `data:` URIs, pixels as PNG; base64 in an earlier answer",
            "videos": "parts of `input`, as `data:` URIs",
            "tools": "`tools`: functions alone",
            "response_format": "`response_format`; `tool_choice` when a call is forced",
            "logprobs": "`top_logprobs`, at most 20",
            "chat_template_options": "`reasoning.effort` and `verbosity`: no others",
            "sampling_params": "see below",
            "target_endpoint": "`provider_options.max`",
        },
        {
            "prompt": None,
            "max_decoded_bytes": None,
            "timestamp_ns": 0,
            "request_path": "/",
            "echo": False,
            "dkv_cache_hint": None,
            "cache_salt": None,
        },
    ),
    Conversion(
        proto.TextGenerationRequestMessage,
        {
            "role": "`role`; the user's when it is left out",
            "content": "`content`: texts; images with a `detail` that the API knows, or of the assistant; videos",
            "reasoning_content": "`reasoning_summary`, where the assistant's content is a list of parts",
        },
        {"tool_calls": None, "tool_call_id": None},
    ),
    Conversion(
        proto.SamplingParams,
        {
            "temperature": "`temperature`",
            "top_p": "`top_p`",
            "top_k": "1 with temperature 0, else -1",
            "frequency_penalty": "`frequency_penalty`",
            "presence_penalty": "`presence_penalty`",
            "max_new_tokens": "`max_output_tokens`, at least 1",
            "stop": "`stop`, at most 4",
            "seed": "`seed`",
        },
        {
            "min_p": 0,
            "thinking_temperature": None,
            "repetition_penalty": 1,
            "min_new_tokens": 0,
            "ignore_eos": False,
            "stop_token_ids": None,
            "detokenize": True,
            "logits_processors": None,
            "named_processors": None,
        },
    ),
    Conversion(
        proto.PixelGenerationRequest,
        {
            "request_id": "the request's own",
            "model": "`model`",
            "prompt": "`input`",
            "images": "parts of `input`, as PNG: uint8, grey `(height, width)` or with 3 or 4 channels",
            "negative_prompt": "`provider_options.image`",
            "height": "`provider_options.image`: multiples of 8, from 128",
            "width": "`provider_options.image`: multiples of 8, from 128",
            "num_inference_steps": "`provider_options.image.steps`",
            "guidance_scale": "`provider_options.image`",
            "num_images_per_prompt": "`provider_options.image.num_images`",
            "seed": "`seed`",
            "options": "`provider_options.image`: what is there, and not its default",
        },
        {},
    ),
    Conversion(
        proto.AudioGenerationRequest,
        {
            "request_id": "the request's own",
            "model": "`model`",
            "input": "`input`",
            "sampling_params": "see above",
            "options": "`provider_options.audio`: what is there, and not its default",
        },
        {
            "audio_prompt_tokens": [],
            "audio_prompt_transcription": "",
            "_assistant_message_override": None,
            "prompt": None,
            "streaming": False,
            "buffer_speech_tokens": None,
        },
    ),
]
