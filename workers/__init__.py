"""Workers: the runtime that batches requests through a pipeline, the fleet that keeps them running, the pipelines.

Imports `coordinator` and what lies below; never a client.
"""
