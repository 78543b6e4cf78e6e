"""Text generation: models on NumPy or CuPy, the cache of keys and values, and the step loop over them.

`models` computes logits and knows no requests; `blocks.py` and `scheduler.py` are pure machines that decide whose
tokens are computed and where they lie; `engine.py` joins them. The pipeline that workers run is `..pipelines.llama`.
"""
