"""Text generation: models on NumPy or CuPy, what chooses their tokens, and the step loop that joins them.

`models` computes logits and knows no requests; `sampling` chooses tokens of them, `answer.py` makes text of those;
`blocks.py` and `scheduler.py` are pure machines that decide whose tokens are computed and where they lie; `engine.py`
joins them. The pipeline that workers run is `..pipelines.llama`.
"""
