"""The pipelines that come with Tensoryard: one module each, all imported only where a deployment names them.

`minilm` embeds texts, `photo_edit` edits photographs, `espeak` speaks. Each offers `create(**options) -> Pipeline`,
which the worker runtime calls, and a way to do the same work in the calling process.
"""
