"""The contracts: requests, contexts, inputs and outputs of each task, pipelines, codecs and wire messages.

Uses `shm` and does no I/O of its own.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ..shm import SharedMemoryArray
from .audio import (
    AudioGenerationContextType,
    AudioGenerationInputs,
    AudioGenerationMetadata,
    AudioGenerationOutput,
    AudioGenerationRequest,
)
from .autoscale import Autoscale
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
from .eos import EOSTracker
from .generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
    Usage,
)
from .logits import BatchLogitsProcessor, BatchProcessorInputs, LogitsProcessor, ProcessorInputs
from .lora import (
    LORA_REQUEST_ENDPOINT,
    LORA_RESPONSE_ENDPOINT,
    LoRAOperation,
    LoRARequest,
    LoRAResponse,
    LoRAStatus,
    LoRAType,
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
from .reasoning import ParsedReasoningDelta, ReasoningParser, ReasoningSpan
from .request import DUMMY_REQUEST_ID, Request, RequestID, RequestType
from .sampling import SamplingParams, SamplingParamsGenerationConfigDefaults, SamplingParamsInput
from .scheduler_result import SchedulerResult
from .status import ClusterStatus, ModelStatus, WorkerStatus
from .text_batch import BatchType, CompletedBatchStats, TextGenerationInputs
from .text_context import TextContext
from .text_messages import (
    ImageContentPart,
    MessageContent,
    TextContentPart,
    TextGenerationRequestMessage,
    VideoContentPart,
)
from .text_output import TextGenerationOutput
from .text_protocol import SpecDecodingState, TextGenerationContext, TextGenerationContextType
from .text_request import (
    TextGenerationRequest,
    TextGenerationRequestFunction,
    TextGenerationRequestTool,
    TextGenerationResponseFormat,
)
from .tokens import LogProbabilities, Range, TokenBuffer, TokenSlice
from .tool_parsing import ParsedToolCall, ParsedToolCallDelta, ParsedToolResponse, ToolParser
from .vision import ImageMetadata, TextAndVisionContext, TokenHashOverride, VLMTextGenerationContext

if TYPE_CHECKING:
    from .open_responses import OpenResponsesRequest
    from .open_responses_body import OpenResponsesRequestBody
    from .open_responses_options import ProviderOptions
    from .open_responses_output import ResponseResource

#: Loaded when first used: their structs take as long to build as all the rest here, and few processes speak HTTP.
_LAZY = {
    "OpenResponsesRequest": ".open_responses",
    "OpenResponsesRequestBody": ".open_responses_body",
    "ProviderOptions": ".open_responses_options",
    "ResponseResource": ".open_responses_output",
}

__all__ = [
    "DUMMY_REQUEST_ID",
    "LORA_REQUEST_ENDPOINT",
    "LORA_RESPONSE_ENDPOINT",
    "AudioContext",
    "AudioGenerationContextType",
    "AudioGenerationInputs",
    "AudioGenerationMetadata",
    "AudioGenerationOutput",
    "AudioGenerationRequest",
    "Autoscale",
    "BaseContext",
    "BaseContextType",
    "BatchLogitsProcessor",
    "BatchProcessorInputs",
    "BatchType",
    "ClusterStatus",
    "CompletedBatchStats",
    "Deployment",
    "EOSTracker",
    "EmbeddingsContext",
    "EmbeddingsGenerationContextType",
    "EmbeddingsGenerationInputs",
    "EmbeddingsGenerationOutput",
    "EmbeddingsRequest",
    "EmbeddingsRequestContext",
    "GenerationOutput",
    "GenerationStatus",
    "ImageContentPart",
    "ImageMetadata",
    "InputModality",
    "LoRAOperation",
    "LoRARequest",
    "LoRAResponse",
    "LoRAStatus",
    "LoRAType",
    "LogProbabilities",
    "LogitsProcessor",
    "MessageContent",
    "ModelStatus",
    "OneShotContext",
    "OpenResponsesRequest",
    "OpenResponsesRequestBody",
    "OutputAudioContent",
    "OutputContent",
    "OutputImageContent",
    "OutputTextContent",
    "OutputVideoContent",
    "ParsedReasoningDelta",
    "ParsedToolCall",
    "ParsedToolCallDelta",
    "ParsedToolResponse",
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
    "ProcessorInputs",
    "ProviderOptions",
    "Range",
    "ReasoningParser",
    "ReasoningSpan",
    "Request",
    "RequestID",
    "RequestType",
    "ResponseResource",
    "SamplingParams",
    "SamplingParamsGenerationConfigDefaults",
    "SamplingParamsInput",
    "SchedulerResult",
    "SharedMemoryArray",
    "SpecDecodingState",
    "TextAndVisionContext",
    "TextContentPart",
    "TextContext",
    "TextGenerationContext",
    "TextGenerationContextType",
    "TextGenerationInputs",
    "TextGenerationOutput",
    "TextGenerationRequest",
    "TextGenerationRequestFunction",
    "TextGenerationRequestMessage",
    "TextGenerationRequestTool",
    "TextGenerationResponseFormat",
    "TokenBuffer",
    "TokenHashOverride",
    "TokenSlice",
    "TokenizerEncoded",
    "ToolParser",
    "UnboundContextType",
    "Usage",
    "VLMTextGenerationContext",
    "VideoContentPart",
    "WorkerStatus",
    "msgpack_numpy_decoder",
    "msgpack_numpy_encoder",
    "msgpack_numpy_oob_decoder",
    "msgpack_numpy_oob_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
