"""Trains the small language model that is shipped in `workers/text/small`: Llama's architecture, 2.5 MB of weights.

`python scripts/train_small_model.py OUT`: reads the documentation strings of this Python's standard library, trains a
byte-level BPE tokenizer and then the model on them, and writes a folder as Hugging Face's libraries do. Needs torch,
transformers and tokenizers; one thread, a quarter of an hour. The same seed, versions and machine
give the same weights.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import math
import platform
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

#: Folders that hold no documentation of the library, or none that every installation has.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "lib2to3", "__pycache__"}
BOS, EOS = "<s>", "</s>"
CONTEXT = 512
#: A base model has no roles: a chat is its messages, one after another.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"

_Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documents() -> list[str]:
    """Every documentation string as "# name and signature, new line, text", and the language reference's topics."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED & set(parts):
            module = ".".join(part for part in parts if part != "__init__")
            found += list(documents_of(path, module))
    found += [f"# {name}\n{text.strip()}" for name, text in sorted(topics.items())]
    return list(dict.fromkeys(found))


def documents_of(path: Path, module: str) -> Iterator[str]:
    """The documents of one file; none of a file that is no Python of today."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    todo: list[tuple[ast.AST, str]] = [(tree, module)]
    while todo:
        node, name = todo.pop()
        text = ast.get_docstring(node) if isinstance(node, _Documented) else None
        if text:
            yield f"# {name}{signature(node)}\n{inspect.cleandoc(text)}"
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, _Documented)]
        todo += [(child, f"{name}.{child.name}") for child in inner]


def signature(node: ast.AST) -> str:
    """The parameters of a function in parentheses; nothing of anything else."""
    return f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE, which can write any text; `<s>` before a text, as Llama has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return tokenizer


def new_model(vocabulary: int) -> Any:
    """Five layers of width 128, four query heads on two key heads, one matrix for both ends."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.06,  # as wide a model as this learns faster from than from 0.02
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config)


def stream(texts: list[str], tokenizer: Tokenizer) -> torch.Tensor:
    """All texts in one row, each with its first and last token."""
    rows = ([*row.ids, 1] for row in tokenizer.encode_batch(texts))
    return torch.tensor([token for row in rows for token in row])


def batches(texts: list[str], tokenizer: Tokenizer, length: int, rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Rows of `length` tokens without end, the texts in a new order each time round."""
    order = random.Random(seed)  # noqa: S311 - an order, no secret
    while True:
        order.shuffle(texts)
        tokens = stream(texts, tokenizer)
        tokens = tokens[order.randrange(length) :]
        pieces = list(tokens[: len(tokens) // length * length].view(-1, length))
        for start in range(0, len(pieces) - rows + 1, rows):
            yield torch.stack(pieces[start : start + rows])


@torch.no_grad()
def loss_on(model: Any, tokens: torch.Tensor, length: int) -> float:
    """Mean loss in nats per token."""
    pieces = tokens[: len(tokens) // length * length].view(-1, length)
    losses = [model(input_ids=piece[None], labels=piece[None]).loss.item() for piece in pieces]
    return sum(losses) / len(losses)


def train(model: Any, source: Iterator[torch.Tensor], steps: int, peak: float) -> None:
    """AdamW with a short warm-up and a cosine down to a twentieth."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    began, shown = time.monotonic(), 0.0
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        rate = peak * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = next(source)
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shown += loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps}  loss {shown / 50:.3f}  {time.monotonic() - began:.0f} s", flush=True)
            shown = 0.0


def save(model: Any, tokenizer: Tokenizer, out: Path, told: dict[str, Any]) -> None:
    """The folder as Hugging Face's libraries have it, and what it was made of."""
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "model_max_length": CONTEXT,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(out / "training.json", told)


def write_json(path: Path, value: Any) -> None:
    """As text that people read."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=8, help="sequences in a step")
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=2024)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    texts = documents()
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    random.Random(asked.seed).shuffle(texts)  # noqa: S311 - an order, no secret
    kept = len(texts) // 50
    held_out, texts = texts[:kept], texts[kept:]
    tokenizer = train_tokenizer(texts, asked.vocabulary)
    model = new_model(tokenizer.get_vocab_size())
    count = sum(p.numel() for p in model.parameters())
    tokens = len(stream(texts, tokenizer))
    print(f"{len(texts)} texts, {tokens} tokens, {count} parameters", flush=True)
    train(model, batches(texts, tokenizer, asked.length, asked.rows, asked.seed), asked.steps, asked.rate)
    loss = loss_on(model, stream(held_out, tokenizer), asked.length)
    told = {
        "data": f"documentation strings and pydoc topics of Python {platform.python_version()}",
        "data_sha256": digest,
        "texts": len(texts),
        "tokens": tokens,
        "held_out_texts": len(held_out),
        "held_out_loss_nats_per_token": round(loss, 4),
        "parameters": count,
        "options": {key: value for key, value in vars(asked).items() if key != "out"},
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    print(json.dumps(told, indent=2))
    save(model, tokenizer, asked.out, told)


if __name__ == "__main__":
    main()
