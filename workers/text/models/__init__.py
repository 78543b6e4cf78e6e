"""Decoders of the Llama family, read from ordinary Hugging Face folders and computed on NumPy or CuPy.

`config.py` reads what a model is, `rope.py` how positions turn, `checkpoint.py` the weights; `decoder.py` computes
logits with the attention of `attention.py` over the cache of `cache.py`. `hf.py`, with `hf_cache.py` and `hf_check.py`,
has the models of `transformers` computed by torch instead; `base.py` is what both are to the engine.
"""
