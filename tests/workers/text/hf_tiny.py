"""Tiny random checkpoints of `transformers`, with a tokenizer made here; nothing is downloaded."""

from __future__ import annotations

import numpy as np
import pytest

SPECIAL = ["<|end|>", "<image>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>", "<s>"]
END, IMAGE, PAD = 256, 257, 259
VOCABULARY = 256 + len(SPECIAL)

#: Of each architecture: its config's class, and sizes.
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
GQA = {**SIZES, "num_key_value_heads": 2}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
ARCHITECTURES = {
    "gpt2": ("GPT2Config", OLD),
    "gptj": ("GPTJConfig", {**OLD, "rotary_dim": 4}),
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "phi": ("PhiConfig", SIZES),
    "gemma": ("GemmaConfig", {**GQA, "head_dim": 8}),
    "gemma2-windows": ("Gemma2Config", {**GQA, "head_dim": 8, "sliding_window": 9}),
    "gpt_neo-windows": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 256,
        },
    ),
    "bloom-no-positions": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mixtral": ("MixtralConfig", {**GQA, "num_local_experts": 4}),
}

CHAT = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}assistant:"
)


def libraries():
    """torch and transformers, or a skipped test."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'tensoryard[hf]'")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    # On a busy machine threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    return torch, transformers


def tokenizer(transformers, *, begins=False):
    """One token for each byte, and the special ones; `begins`: prompts begin with one of those."""
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    ends = {"eos_token": SPECIAL[0], "pad_token": SPECIAL[0]}
    if begins:
        begin = ("<s>", made.token_to_id("<s>"))
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
        ends["bos_token"] = "<s>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **ends)


def lively(torch, model):
    """Biases and gains that are seen to be used."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def write_text_model(folder, name, *, dtype=None):
    """A text model's folder; the library's model, read back."""
    torch, transformers = libraries()
    kind, fields = ARCHITECTURES[name]
    torch.manual_seed(3)
    ends = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": None}
    config = getattr(transformers, kind)(**{"vocab_size": VOCABULARY, "initializer_range": 0.3, **ends, **fields})
    model = lively(torch, transformers.AutoModelForCausalLM.from_config(config))
    (model if dtype is None else model.to(dtype)).save_pretrained(folder)
    tokenizer(transformers).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


TEXT = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,
    "eos_token_id": END,
    "bos_token_id": None,
    "pad_token_id": None,
    **GQA,
}


CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 16,
}
PINPOINTS = [[28, 56], [56, 28], [56, 56]]
#: Encoders of the Qwen-VL family; of Qwen3-VL's, parts go into deeper layers too.
GRIDDED = {"spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 14, "num_heads": 2}
QWEN = {
    "Qwen2VL": {**GRIDDED, "depth": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    "Qwen2_5_VL": {
        **GRIDDED,
        "depth": 2,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 32,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "Qwen3VL": {
        **GRIDDED,
        "depth": 3,
        "hidden_size": 16,
        "out_hidden_size": 32,
        "intermediate_size": 32,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 64,
    },
}


def _write_llava(folder, kind, image_processor, **fields):
    """A LLaVA: CLIP's encoder, a projector, a Llama; images of 28 by 28 pixels have 4 tokens."""
    torch, transformers = libraries()
    torch.manual_seed(4)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        eos_token_id=END,
        **fields,
    )
    model_type = getattr(transformers, f"{kind}ForConditionalGeneration")
    model = lively(torch, model_type(config))
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(20)  # images are to matter
    model.save_pretrained(folder)
    getattr(transformers, f"{kind}Processor")(
        image_processor=image_processor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **fields),
        tokenizer=tokenizer(transformers, begins=True),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)
    return model_type.from_pretrained(folder).eval()


def write_llava(folder):
    """One image, one crop."""
    libraries()
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return _write_llava(folder, "Llava", CLIPImageProcessorPil)


def write_llava_next(folder):
    """Images in several crops; their tokens have ends of rows among them."""
    libraries()
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    return _write_llava(folder, "LlavaNext", LlavaNextImageProcessorPil, image_grid_pinpoints=PINPOINTS)


def _write_qwen(folder, kind):
    """A model of the Qwen-VL family: images have sizes of their own, and positions by rows and columns."""
    torch, transformers = libraries()
    torch.manual_seed(5)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=QWEN[kind],
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        image_token_id=PAD,
        video_token_id=PAD + 2,
        vision_start_token_id=PAD - 1,
        vision_end_token_id=PAD + 1,
        eos_token_id=END,
    )
    model_type = getattr(transformers, f"{kind}ForConditionalGeneration")
    model = lively(torch, model_type(config))
    with torch.no_grad():
        for name, parameter in model.model.visual.merger.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                parameter.mul_(5)
    model.save_pretrained(folder)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}
    ).save_pretrained(folder)
    made = tokenizer(transformers)
    made.chat_template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    made.save_pretrained(folder)
    return model_type.from_pretrained(folder).eval()


def write_qwen2_vl(folder):
    """As it began."""
    return _write_qwen(folder, "Qwen2VL")


def write_qwen2_5_vl(folder):
    """An encoder that attends in windows."""
    return _write_qwen(folder, "Qwen2_5_VL")


def write_qwen3_vl(folder):
    """An encoder that feeds deeper layers: not served."""
    return _write_qwen(folder, "Qwen3VL")


VISION = {
    "llava": write_llava,
    "llava_next": write_llava_next,
    "qwen2_vl": write_qwen2_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
}
PLACEHOLDER = {"llava": "<image>", "llava_next": "<image>", "qwen2_vl": "<|image_pad|>", "qwen2_5_vl": "<|image_pad|>"}


def picture(seed, height=40, width=60):
    """Pixels, uint8 `(height, width, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def theirs(model, folder, name, text, images, new):
    """The tokens that transformers generates by itself, greedily; `text` has the placeholders already."""
    torch, transformers = libraries()
    given = {}
    if name.startswith("llava"):
        processor = transformers.AutoProcessor.from_pretrained(folder)
        given = dict(processor(text=[text], images=images or None, return_tensors="pt"))
    else:
        words = transformers.AutoTokenizer.from_pretrained(folder)
        if images:
            given = dict(transformers.AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt"))
            for grid in given["image_grid_thw"]:
                rows = int(grid.prod()) // 4
                text = text.replace("<|image_pad|>", "<|placeholder|>" * rows, 1)
            text = text.replace("<|placeholder|>", "<|image_pad|>")
        ids = words(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            given["mm_token_type_ids"] = (ids == PAD).int()
    with torch.no_grad():
        found = model.generate(**given, max_new_tokens=new, do_sample=False, pad_token_id=END)
    return found[0, given["input_ids"].shape[1] :].tolist()
