"""The contracts: requests, contexts, inputs and outputs of each task, pipelines, codecs and wire messages.

Uses `shm` and does no I/O of its own.
"""

from ..shm import SharedMemoryArray
from .audio import (
    AudioGenerationContextType,
    AudioGenerationInputs,
    AudioGenerationMetadata,
    AudioGenerationOutput,
    AudioGenerationRequest,
)
from .codec import (
    msgpack_numpy_decoder,
    msgpack_numpy_encoder,
    msgpack_numpy_oob_decoder,
    msgpack_numpy_oob_encoder,
)
from .context import BaseContext, BaseContextType, GenerationStatus
from .deployment import Deployment
from .embeddings import (
    EmbeddingsContext,
    EmbeddingsGenerationContextType,
    EmbeddingsGenerationInputs,
    EmbeddingsGenerationOutput,
    EmbeddingsRequest,
)
from .generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
    Usage,
)
from .one_shot import AudioContext, EmbeddingsRequestContext, OneShotContext, PixelContext
from .pipeline import (
    InputModality,
    Pipeline,
    PipelineInputs,
    PipelineInputsType,
    PipelineOutput,
    PipelineOutputsDict,
    PipelineOutputType,
    PipelinesFactory,
    PipelineTask,
    PipelineTokenizer,
    TokenizerEncoded,
    UnboundContextType,
)
from .pixels import (
    PixelGenerationContext,
    PixelGenerationContextType,
    PixelGenerationInputs,
    PixelGenerationRequest,
)
from .request import DUMMY_REQUEST_ID, Request, RequestID, RequestType
from .sampling import SamplingParams, SamplingParamsGenerationConfigDefaults, SamplingParamsInput
from .status import ClusterStatus, ModelStatus, WorkerStatus
from .tokens import LogProbabilities, Range, TokenBuffer, TokenSlice

__all__ = [
    "DUMMY_REQUEST_ID",
    "AudioContext",
    "AudioGenerationContextType",
    "AudioGenerationInputs",
    "AudioGenerationMetadata",
    "AudioGenerationOutput",
    "AudioGenerationRequest",
    "BaseContext",
    "BaseContextType",
    "ClusterStatus",
    "Deployment",
    "EmbeddingsContext",
    "EmbeddingsGenerationContextType",
    "EmbeddingsGenerationInputs",
    "EmbeddingsGenerationOutput",
    "EmbeddingsRequest",
    "EmbeddingsRequestContext",
    "GenerationOutput",
    "GenerationStatus",
    "InputModality",
    "LogProbabilities",
    "ModelStatus",
    "OneShotContext",
    "OutputAudioContent",
    "OutputContent",
    "OutputImageContent",
    "OutputTextContent",
    "OutputVideoContent",
    "Pipeline",
    "PipelineInputs",
    "PipelineInputsType",
    "PipelineOutput",
    "PipelineOutputType",
    "PipelineOutputsDict",
    "PipelineTask",
    "PipelineTokenizer",
    "PipelinesFactory",
    "PixelContext",
    "PixelGenerationContext",
    "PixelGenerationContextType",
    "PixelGenerationInputs",
    "PixelGenerationRequest",
    "Range",
    "Request",
    "RequestID",
    "RequestType",
    "SamplingParams",
    "SamplingParamsGenerationConfigDefaults",
    "SamplingParamsInput",
    "SharedMemoryArray",
    "TokenBuffer",
    "TokenSlice",
    "TokenizerEncoded",
    "UnboundContextType",
    "Usage",
    "WorkerStatus",
    "msgpack_numpy_decoder",
    "msgpack_numpy_encoder",
    "msgpack_numpy_oob_decoder",
    "msgpack_numpy_oob_encoder",
]
