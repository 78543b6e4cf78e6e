"""The contracts as data: every name of the interface, what it is in the reference, and where ours differs and why.

The facts are written in the words of `contract_facts.py`, one to a line. They follow the older version for what exists
only there and the newer one for what it fixed or widened. A `Differs` says exactly what ours has instead: a line that
changes or adds a fact, or `-fact` for one that ours lacks. `test_contracts.py` holds the code to it, and
`scripts/generate_contracts.py` makes docs/contracts.md of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: The sections of the interface, in order, and how many names each has.
SECTIONS = {
    "Pipeline base": 12,
    "Text generation": 14,
    "Embeddings": 4,
    "Audio generation": 5,
    "Image generation": 6,
    "Reasoning": 3,
    "Tool parsing": 4,
    "Context and sampling": 8,
    "Requests": 5,
    "Tokens": 4,
    "Logit processors": 4,
    "LoRA": 7,
    "Utilities": 3,
}


#: Where each section is in the reference: modules under `max.interfaces` (26.3) and under `max.pipelines` (26.7).
SOURCES = {
    "Pipeline base": (("pipeline", "task", "tokenizer"), ("modeling.types",)),
    "Text generation": (
        ("pipeline_variants.text_generation",),
        ("modeling.types.pipeline_variants.text_generation", "context"),
    ),
    "Embeddings": (
        ("pipeline_variants.embeddings_generation",),
        ("modeling.types.pipeline_variants.embeddings_generation",),
    ),
    "Audio generation": (
        ("pipeline_variants.audio_generation",),
        ("modeling.types.pipeline_variants.audio_generation", "context"),
    ),
    "Image generation": (
        ("pipeline_variants.pixel_generation", "pipeline_variants.text_generation"),
        ("modeling.types.pipeline_variants", "context.tokens"),
    ),
    "Reasoning": (("reasoning",), ("modeling.types.reasoning",)),
    "Tool parsing": (("tool_parsing",), ("modeling.types.tool_parsing",)),
    "Context and sampling": (("context", "eos_tracking", "generation", "status"), ("context",)),
    "Requests": (("request.base", "request.open_responses"), ("request",)),
    "Tokens": (("tokens", "log_probabilities"), ("context.tokens", "context.log_probabilities")),
    "Logit processors": (("logit_processors_type",), ("context.logit_processors_type",)),
    "LoRA": (("lora",), ("lora.lora_types",)),
    "Utilities": (("utils.shared_memory", "utils.serialization"), ("modeling.types.utils",)),
}


#: One line for each public name beside the contracts that no docstring can say it of.
OTHER_LINES = {"OutputContent": "One part of a `GenerationOutput`."}


def facts(text: str) -> dict[str, str]:
    """The facts of a block of lines, each `what: how`."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return dict(line.split(": ", 1) for line in lines)


class Differs:
    """One deliberate difference: its reason, and the facts that ours has instead."""

    def __init__(self, why: str, text: str = "") -> None:
        lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
        self.why = why
        #: Facts that ours lacks.
        self.lacks = [line[1:] for line in lines if line.startswith("-")]
        #: Facts that ours has otherwise, or beyond the reference.
        self.has = facts("\n".join(line for line in lines if not line.startswith("-")))


@dataclass
class Contract:
    """One name: its section, the facts of the reference, and our differences; `line` says what it is, where no
    docstring can.
    """

    section: str
    name: str
    reference: dict[str, str]
    differs: list[Differs] = field(default_factory=list)
    line: str = ""

    @property
    def ours(self) -> dict[str, str]:
        """The facts that the code must have: those of the reference, with the differences applied."""
        found = dict(self.reference)
        for difference in self.differs:
            for key in difference.lacks:
                del found[key]
            found.update(difference.has)
        return found


CONTRACTS: list[Contract] = []


def contract(section: str, name: str, text: str, *differs: Differs, line: str = "") -> None:
    """Add a name to the table."""
    CONTRACTS.append(Contract(section, name, facts(text), list(differs), line))


#: Reasons that several names share.
STRUCT = "a msgspec struct: checked by the codec itself on both sides, with no second library on the path of a message"
CHECKED = "refused where it is built, not only where it is read"
WIRE = "knows its own form on the wire, so that the codec needs no registry"
CONVENIENT = "made when not given, so that callers need not"
OPTIONS = "carries the options of a pipeline of the user's own"

# -- pipeline base ----------------------------------------------------------------------------------------------------

BASE = "Pipeline base"

contract(
    BASE,
    "InputModality",
    """
    kind: str enum
    value TEXT: 'text'
    value IMAGE: 'image'
    value VIDEO: 'video'
    """,
)
contract(
    BASE,
    "PipelineTask",
    """
    kind: str enum
    value TEXT_GENERATION: 'text_generation'
    value EMBEDDINGS_GENERATION: 'embeddings_generation'
    value AUDIO_GENERATION: 'audio_generation'
    value SPEECH_TOKEN_GENERATION: 'speech_token_generation'
    value PIXEL_GENERATION: 'pixel_generation'
    value UNDEFINED: 'undefined'
    data output_type: type[dict[RequestID, SchedulerResult[Any]]]
    """,
    Differs(
        "dropped in the newer version, kept here: it reads the one table of proto/outputs.py, and a `SchedulerResult` "
        "travels as an array"
    ),
)
contract(BASE, "PipelineInputs", "kind: class")
contract(
    BASE,
    "PipelineOutput",
    """
    kind: runtime-checkable protocol
    data is_done: bool
    """,
)
contract(
    BASE,
    "PipelineInputsType",
    """
    kind: type variable
    bound: PipelineInputs
    variance: invariant
    """,
    line="The batch inputs that a pipeline takes.",
)
contract(
    BASE,
    "PipelineOutputType",
    """
    kind: type variable
    bound: PipelineOutput
    variance: invariant
    """,
    line="The outputs that a pipeline gives.",
)
contract(
    BASE,
    "PipelineOutputsDict",
    """
    kind: alias
    is: dict[RequestID, PipelineOutputType]
    """,
    line="One output per request that produced something this step; an Exception as a value fails that request alone.",
)
contract(
    BASE,
    "Pipeline",
    """
    kind: abstract class
    parameters: PipelineInputsType, PipelineOutputType
    data max_batch_size: abstract int
    method execute: abstract (inputs)
    method release: abstract (request_id)
    """,
    Differs(
        "1 unless overridden, and a plain attribute may do so: a short pipeline stays short", "data max_batch_size: int"
    ),
    Differs(
        "lets the worker read each request's options into a type, so that a wrong key is an error naming the key",
        "data options_type: type[Any] | None",
    ),
    Differs(
        "lets the worker give contexts the tokens of their texts",
        "data tokenize: Callable[[str], Sequence[int]] | None",
    ),
    Differs(
        "text pipelines make contexts inside the worker, where the tokenizer is",
        "data new_context: Callable[[Any], Any] | None",
    ),
    Differs(
        "a grammar takes up to a second to compile, for which no other request is to wait",
        "data is_slow_to_read: Callable[[Any], bool] | None",
    ),
    Differs("a pipeline's own adapters, if it has any, are loaded by its worker", "data lora: LoRAAdapters | None"),
)
contract(
    BASE,
    "PipelinesFactory",
    """
    kind: alias
    is: Callable[[], Pipeline[PipelineInputsType, PipelineOutputType]]
    """,
    line="Makes a pipeline, inside the worker process.",
)
contract(
    BASE,
    "PipelineTokenizer",
    """
    kind: runtime-checkable protocol
    parameters: UnboundContextType, TokenizerEncoded, RequestType
    data eos_token_ids: set[int]
    data expects_content_wrapping: bool
    method new_context: async (request)
    method encode: async (prompt, add_special_tokens)
    method decode: async (encoded, **kwargs)
    """,
    Differs(
        "a variable of its own without a bound: a tokenizer may take requests that are only a part of ours",
        "parameters: UnboundContextType, TokenizerEncoded, _RequestType",
    ),
)
contract(
    BASE,
    "TokenizerEncoded",
    """
    kind: type variable
    bound: none
    variance: invariant
    """,
    line="What a tokenizer makes of a text.",
)
contract(
    BASE,
    "UnboundContextType",
    """
    kind: type variable
    bound: none
    variance: covariant
    """,
    line="The context that a tokenizer builds for a request.",
)

# -- text generation --------------------------------------------------------------------------------------------------

TEXT = "Text generation"

contract(
    TEXT,
    "BatchType",
    """
    kind: enum
    value CE: 'CE'
    value TG: 'TG'
    """,
)
contract(
    TEXT,
    "TextContentPart",
    """
    kind: frozen pydantic model
    field type: Literal['text'] = 'text'
    field text: str
    """,
    Differs(STRUCT, "kind: frozen keyword-only struct"),
)
contract(
    TEXT,
    "MessageContent",
    """
    kind: alias
    is: TextContentPart | ImageContentPart | VideoContentPart
    """,
    line="One part of a message's content.",
)
contract(
    TEXT,
    "TextGenerationRequestFunction",
    """
    kind: typed dict
    key name: str
    key description: str | None
    key parameters: dict[str, Any]
    key strict: NotRequired[bool | None]
    """,
    Differs(
        "a function may have no description and take no arguments, as the API has it; nothing is checked at run time",
        """
        key description: NotRequired[str | None]
        key parameters: NotRequired[dict[str, Any]]
        """,
    ),
)
contract(
    TEXT,
    "TextGenerationRequestTool",
    """
    kind: typed dict
    key type: str
    key function: TextGenerationRequestFunction
    """,
)
contract(
    TEXT,
    "TextGenerationResponseFormat",
    """
    kind: dataclass
    field type: str
    field json_schema: dict[str, Any] | None = None
    field grammar: str | None = None
    field grammar_enforced: bool = False
    field tools_forced: bool = False
    field requires_structured_output_flag: bool = False
    field has_json_schema: bool = False
    """,
)
contract(
    TEXT,
    "TextGenerationRequestMessage",
    """
    kind: frozen pydantic model
    field role: Literal['system', 'user', 'assistant', 'tool', 'function', 'root']
    field content: str | list[MessageContent] = ''
    field tool_calls: list[dict[str, Any]] | None = None
    field tool_call_id: str | None = None
    field reasoning_content: str | None = None
    data number_of_images: int
    data number_of_videos: int
    method flatten_content: ()
    """,
    Differs(STRUCT + "; hints in the dict of an image or a video are kept", "kind: frozen keyword-only struct"),
)
contract(
    TEXT,
    "TextGenerationRequest",
    """
    kind: frozen dataclass
    field request_id: RequestID
    field model_name: str
    field prompt: str | Sequence[int] | None = None
    field messages: list[TextGenerationRequestMessage] = []
    field images: list[bytes] = []
    field videos: list[bytes] = []
    field decoded_images: list[Image | None] = []
    field max_decoded_bytes: int | None = None
    field tools: list[TextGenerationRequestTool] | None = None
    field response_format: TextGenerationResponseFormat | None = None
    field timestamp_ns: int = 0
    field request_path: str = '/'
    field logprobs: int = 0
    field echo: bool = False
    field chat_template_options: dict[str, Any] | None = None
    field sampling_params: SamplingParams = SamplingParams()
    field target_endpoint: str | None = None
    field dkv_cache_hint: dict[str, Any] | None = None
    field cache_salt: str | None = None
    data number_of_images: int
    data number_of_videos: int
    method images_for_processing: ()
    method __str__: ()
    """,
    Differs(
        CONVENIENT + "; a request without a model is refused all the same",
        """
        field request_id: RequestID = RequestID()
        field model_name: str = ''
        """,
    ),
    Differs(
        "an attribute that the constructor takes in the same place, and no field: decoded images never travel",
        """
        -field decoded_images
        data decoded_images: list[Any]
        call: (request_id=..., model_name='', prompt=None, messages=..., images=..., videos=..., decoded_images=..., """
        """max_decoded_bytes=None, tools=None, response_format=None, timestamp_ns=0, request_path='/', logprobs=0, """
        """echo=False, chat_template_options=None, sampling_params=..., target_endpoint=None, dkv_cache_hint=None, """
        """cache_salt=None)
        """,
    ),
    Differs(
        "an image may be pixels as they are, which travel by handle",
        "field images: list[bytes | NDArray[Any]] = []",
    ),
    Differs("placeholders without media, a salt over 512 characters and wrong kinds are refused; lists are copied"),
)
contract(
    TEXT,
    "TextGenerationContext",
    """
    kind: runtime-checkable protocol
    extends: BaseContext
    data status: GenerationStatus
    data request_id: RequestID
    data is_done: bool
    data tokens: TokenBuffer
    data eos_tracker: EOSTracker
    data max_length: int | None
    data min_tokens: int
    data log_probabilities: int
    data log_probabilities_echo: bool
    data sampling_params: SamplingParams
    data matcher: Any | None
    data json_schema: str | None
    data is_initial_prompt: bool
    data spec_decoding_state: SpecDecodingState
    data cached_prefix_length: int | None
    data in_reasoning_phase: bool
    method set_matcher: (matcher)
    method reset: ()
    method compute_num_available_steps: (max_seq_len)
    method get_min_token_logit_mask: (num_steps)
    method advance_token_buffer: (new_token, log_probabilities=None)
    method advance_fsm: (token)
    method update: (new_token, log_probabilities=None)
    method update_with_future_token: ()
    method realize_future_token: (new_token, log_probabilities=None)
    method to_generation_output: ()
    """,
    Differs("`TextContext` is our class for it"),
)
contract(
    TEXT,
    "TextGenerationContextType",
    """
    kind: type variable
    bound: TextGenerationContext
    variance: invariant
    """,
    line="The context of a text pipeline.",
)
contract(
    TEXT,
    "SpecDecodingState",
    """
    kind: dataclass
    field draft_tokens_to_verify: list[int] = []
    field maybe_accepted_draft_tokens: list[int] = []
    """,
)
contract(
    TEXT,
    "TextGenerationInputs",
    """
    kind: dataclass
    parameters: TextGenerationContextType
    extends: PipelineInputs
    field batches: list[list[TextGenerationContextType]]
    field num_steps: int
    field input_tokens: int = -1
    field batch_type: BatchType = BatchType.TG
    field per_replica_input_tokens: list[int] = []
    field per_replica_context_tokens: list[int] = []
    data flat_batch: list[TextGenerationContextType]
    data batch_size: int
    data enable_echo: bool
    data enable_log_probs: bool
    data batch_top_log_probs: list[int]
    data batch_echo: list[bool]
    method __bool__: ()
    """,
    Differs(
        "required in the older version and gone from the newer: code written for either runs",
        "field num_steps: int = 1",
    ),
)
contract(
    TEXT,
    "TextGenerationOutput",
    """
    kind: keyword-only dataclass
    field request_id: RequestID
    field tokens: list[int]
    field final_status: GenerationStatus
    field log_probabilities: list[LogProbabilities] | None = None
    field num_cached_tokens: int | None = None
    field ttft_join_hops_ms: dict[str, float] | None = None
    field label_log_probabilities: list[float] | None = None
    data is_done: bool
    classmethod merge: (outputs)
    """,
    Differs(
        "one of these travels per token, so it is an array without field names",
        """
        kind: keyword-only struct
        wire: array
        """,
    ),
    Differs("`merge` compares ids, takes a last chunk without log probabilities, and always makes a new object"),
    Differs(
        "the worker makes the text and tells thinking and calls apart, since a client has no tokenizer",
        """
        field text: str | None = None
        field reasoning: str | None = None
        field tool_calls: list[ParsedToolCallDelta] | None = None
        data calls: list[ParsedToolCall]
        """,
    ),
    Differs(
        "a caller sees what speculative decoding did for his request",
        """
        field draft_tokens_generated: int = 0
        field draft_tokens_accepted: int = 0
        """,
    ),
)
contract(
    TEXT,
    "VLMTextGenerationContext",
    """
    kind: runtime-checkable protocol
    extends: TextGenerationContext
    data status: GenerationStatus
    data request_id: RequestID
    data is_done: bool
    data tokens: TokenBuffer
    data eos_tracker: EOSTracker
    data max_length: int | None
    data min_tokens: int
    data log_probabilities: int
    data log_probabilities_echo: bool
    data sampling_params: SamplingParams
    data matcher: Any | None
    data json_schema: str | None
    data is_initial_prompt: bool
    data spec_decoding_state: SpecDecodingState
    data cached_prefix_length: int | None
    data in_reasoning_phase: bool
    method set_matcher: (matcher)
    method reset: ()
    method compute_num_available_steps: (max_seq_len)
    method get_min_token_logit_mask: (num_steps)
    method advance_token_buffer: (new_token, log_probabilities=None)
    method advance_fsm: (token)
    method update: (new_token, log_probabilities=None)
    method update_with_future_token: ()
    method realize_future_token: (new_token, log_probabilities=None)
    method to_generation_output: ()
    data images: list[ImageMetadata]
    data image_idx: int
    data next_images: list[ImageMetadata]
    data needs_vision_encoding: bool
    data image_token_indices: NDArray[int32]
    method compute_image_aligned_idx: (idx)
    """,
    Differs("`TextAndVisionContext` is our class for it, and has `next_images_in_window` too"),
)

# -- embeddings -------------------------------------------------------------------------------------------------------

EMBEDDINGS = "Embeddings"

contract(
    EMBEDDINGS,
    "EmbeddingsContext",
    """
    kind: runtime-checkable protocol
    extends: BaseContext
    data status: GenerationStatus
    data request_id: RequestID
    data is_done: bool
    data tokens: TokenBuffer
    data model_name: str
    """,
    Differs(
        "`EmbeddingsRequestContext` is our class for it; its `tokens` are the request's ids, or what the pipeline's "
        "`tokenize` makes of its text, and an InvalidRequest where the request carries arrays"
    ),
)
contract(
    EMBEDDINGS,
    "EmbeddingsGenerationContextType",
    """
    kind: type variable
    bound: EmbeddingsContext
    variance: invariant
    """,
    line="The context of an embeddings pipeline.",
)
contract(
    EMBEDDINGS,
    "EmbeddingsGenerationInputs",
    """
    kind: frozen dataclass
    extends: PipelineInputs
    field batches: list[dict[RequestID, EmbeddingsContext]]
    data batch: dict[RequestID, EmbeddingsContext]
    """,
    Differs(
        "our contexts may hold texts or arrays in place of tokens",
        """
        field batches: list[dict[RequestID, Any]]
        data batch: dict[RequestID, Any]
        """,
    ),
)
contract(
    EMBEDDINGS,
    "EmbeddingsGenerationOutput",
    """
    kind: struct
    wire: tag 'EmbeddingsGenerationOutput', omits defaults
    field embeddings: NDArray[floating[Any]]
    data is_done: bool
    """,
)

# -- audio ------------------------------------------------------------------------------------------------------------

AUDIO = "Audio generation"

contract(
    AUDIO,
    "AudioGenerationContextType",
    """
    kind: type variable
    bound: BaseContext
    variance: invariant
    """,
    line="The context of an audio pipeline.",
)
contract(
    AUDIO,
    "AudioGenerationInputs",
    """
    kind: frozen dataclass
    parameters: AudioGenerationContextType
    extends: PipelineInputs
    field batch: dict[RequestID, AudioGenerationContextType]
    """,
    Differs(
        "any context will do",
        """
        parameters: _ContextType
        field batch: dict[RequestID, _ContextType]
        """,
    ),
)
contract(
    AUDIO,
    "AudioGenerationMetadata",
    """
    kind: keyword-only struct
    wire: tag 'AudioGenerationMetadata', omits defaults
    field sample_rate: int | None = None
    field duration: float | None = None
    field chunk_id: int | None = None
    field timestamp: str | None = None
    field final_chunk: bool | None = None
    field model_name: str | None = None
    field request_id: RequestID | None = None
    field tokens_generated: int | None = None
    field processing_time: float | None = None
    field echo: str | None = None
    method to_dict: ()
    """,
    Differs("`to_dict` keeps 0, False and empty texts, and gives the id as its string"),
)
contract(
    AUDIO,
    "AudioGenerationOutput",
    """
    kind: struct
    wire: tag 'AudioGenerationOutput', omits defaults
    field final_status: GenerationStatus
    field steps_executed: int
    field audio_data: NDArray[float32] = array float32 (0,)
    field buffer_speech_tokens: NDArray[integer[Any]] | None = None
    field metadata: AudioGenerationMetadata = AudioGenerationMetadata()
    data is_done: bool
    """,
)
contract(
    AUDIO,
    "AudioGenerationRequest",
    """
    kind: frozen dataclass
    field request_id: RequestID
    field model: str
    field input: str | None = None
    field audio_prompt_tokens: list[int] = []
    field audio_prompt_transcription: str = ''
    field sampling_params: SamplingParams = SamplingParams()
    field _assistant_message_override: str | None = None
    field prompt: list[int] | str | None = None
    field streaming: bool = True
    field buffer_speech_tokens: NDArray[integer[Any]] | None = None
    """,
    Differs(
        CONVENIENT + "; a request without a model is refused all the same",
        """
        field request_id: RequestID = RequestID()
        field model: str = ''
        """,
    ),
    Differs(OPTIONS, "field options: dict[str, Any] = {}"),
    Differs("prints as its id, like every other request", "method __str__: ()"),
    Differs(
        "neither `input` nor `prompt` is an InvalidRequest (a ValueError); the limit of 4096 characters is enforced"
    ),
)

# -- images -----------------------------------------------------------------------------------------------------------

IMAGES = "Image generation"

contract(
    IMAGES,
    "ImageContentPart",
    """
    kind: frozen pydantic model
    field type: Literal['image'] = 'image'
    field detail: str | None = None
    field max_long_side_pixel: int | None = None
    """,
    Differs(STRUCT, "kind: frozen keyword-only struct"),
)
contract(
    IMAGES,
    "VideoContentPart",
    """
    kind: frozen pydantic model
    field type: Literal['video'] = 'video'
    field fps: float | None = None
    field max_frames: int | None = None
    field detail: str | None = None
    field max_long_side_pixel: int | None = None
    """,
    Differs(STRUCT, "kind: frozen keyword-only struct"),
)
contract(
    IMAGES,
    "ImageMetadata",
    """
    kind: keyword-only dataclass
    field start_idx: int
    field end_idx: int
    field pixel_values: NDArray[Any]
    field image_hash: int | None = None
    field num_embedding_rows: int | None = None
    data embedding_rows: int
    """,
    Differs("can be compared: pixels count too"),
)
contract(
    IMAGES,
    "PixelGenerationContext",
    """
    kind: runtime-checkable protocol
    extends: BaseContext
    data status: GenerationStatus
    data request_id: RequestID
    data is_done: bool
    data tokens: TokenBuffer
    data latents: NDArray[float32]
    data height: int
    data width: int
    data num_inference_steps: int
    data guidance_scale: float
    data num_images_per_prompt: int
    """,
    Differs(
        "`PixelContext` is our class for it: 1024 x 1024 pixels and 50 steps where the caller left them open, latents "
        "drawn by the request's seed when first asked for, tokens by the pipeline's `tokenize`"
    ),
)
contract(
    IMAGES,
    "PixelGenerationContextType",
    """
    kind: type variable
    bound: PixelGenerationContext
    variance: invariant
    """,
    line="The context of a diffusion pipeline.",
)
contract(
    IMAGES,
    "PixelGenerationInputs",
    """
    kind: frozen dataclass
    parameters: PixelGenerationContextType
    extends: PipelineInputs
    field batch: dict[RequestID, PixelGenerationContextType]
    """,
    Differs(
        "any context will do: pipelines that edit images need no latents",
        """
        parameters: _ContextType
        field batch: dict[RequestID, _ContextType]
        """,
    ),
)

# -- reasoning --------------------------------------------------------------------------------------------------------

REASONING = "Reasoning"

contract(
    REASONING,
    "ReasoningSpan",
    """
    kind: class
    call: (reasoning_with_delimiters, reasoning)
    method extract_content: (seq)
    method extract_reasoning: (seq)
    """,
    Differs(
        "can be compared, printed and read; ranges that are not nested are a ValueError, under `python -O` too",
        """
        kind: frozen dataclass
        -call
        field reasoning_with_delimiters: tuple[int, int]
        field reasoning: tuple[int, int]
        """,
    ),
)
contract(
    REASONING,
    "ParsedReasoningDelta",
    """
    kind: frozen dataclass
    field span: ReasoningSpan
    field is_still_reasoning: bool
    field reasoning_text_formatter: Callable[[str], str | None] | None = None
    """,
    Differs(
        "a chunk may think more than once",
        """
        field more_spans: tuple[ReasoningSpan, ...] = ()
        data spans: tuple[ReasoningSpan, ...]
        method extract_content: (seq)
        method extract_reasoning: (seq)
        """,
    ),
    Differs(
        "delimiters of several tokens may be cut by the end of a chunk: what is held back and given back later",
        """
        field restored: tuple[int, ...] = ()
        field withheld: int = 0
        """,
    ),
)
contract(
    REASONING,
    "ReasoningParser",
    """
    kind: abstract class
    data REASONING_START: ClassVar[str | None]
    data REASONING_END: ClassVar[str | None]
    classmethod from_tokenizer: abstract async (tokenizer)
    classmethod reasoning_end_token_id: abstract async (tokenizer)
    method stream: abstract (delta_token_ids, is_currently_reasoning=True)
    method will_reason_after_prompt: (prompt_token_ids)
    method reset: ()
    """,
    Differs("one parser per stream, so that concurrent answers never mix", "method for_request: ()"),
    Differs("what is held back at the end of a stream", "method flush: ()"),
)

# -- tools ------------------------------------------------------------------------------------------------------------

TOOLS = "Tool parsing"

contract(
    TOOLS,
    "ParsedToolCall",
    """
    kind: dataclass
    field id: str
    field name: str
    field arguments: str
    """,
)
contract(
    TOOLS,
    "ParsedToolCallDelta",
    """
    kind: dataclass
    field index: int
    field id: str | None = None
    field name: str | None = None
    field arguments: str | None = None
    field content: str | None = None
    """,
)
contract(
    TOOLS,
    "ParsedToolResponse",
    """
    kind: dataclass
    field content: str | None = None
    field tool_calls: list[ParsedToolCall] = []
    """,
)
contract(
    TOOLS,
    "ToolParser",
    """
    kind: protocol
    method parse_complete: (response)
    method parse_delta: (delta)
    method reset: ()
    method set_streaming_tool_schemas: (schemas)
    """,
    Differs("can be checked, so that nothing needs to be sniffed", "kind: runtime-checkable protocol"),
    Differs("the end of a stream is part of the protocol", "method flush: ()"),
    Differs("`None` from `parse_delta` has one meaning: plain text, nothing held back"),
)

# -- context and sampling ---------------------------------------------------------------------------------------------

CONTEXT = "Context and sampling"

contract(
    CONTEXT,
    "BaseContext",
    """
    kind: runtime-checkable protocol
    data status: GenerationStatus
    data request_id: RequestID
    data is_done: bool
    """,
    Differs(
        "its `isinstance` looks members up by name and runs none of them, and so does that of each that extends it"
    ),
)
contract(
    CONTEXT,
    "BaseContextType",
    """
    kind: type variable
    bound: BaseContext
    variance: invariant
    """,
    line="The context of any pipeline.",
)
contract(
    CONTEXT,
    "GenerationStatus",
    """
    kind: str enum
    value ACTIVE: 'active'
    value END_OF_SEQUENCE: 'end_of_sequence'
    value MAXIMUM_LENGTH: 'maximum_length'
    value CANCELLED: 'cancelled'
    data is_done: bool
    """,
)
contract(
    CONTEXT,
    "EOSTracker",
    """
    kind: pydantic model
    field eos_token_ids: set[int] = set()
    field eos_sequences: Sequence[Sequence[int]] = []
    field eos_stop_strings: Sequence[str] = []
    method is_eos_from_tokens: (generated_tokens)
    method is_eos_from_string: (next_token_decoded)
    data eos_sequence_lookback: int
    method first_eos_offset: (prior_generated, new_tokens)
    """,
    Differs(
        "a class whose rules cannot change after construction; all are checked and bounded, empty ones are refused",
        """
        kind: class
        call: (*, eos_token_ids=(), eos_sequences=(), eos_stop_strings=())
        -field eos_token_ids
        -field eos_sequences
        -field eos_stop_strings
        data eos_token_ids: frozenset[int]
        data eos_sequences: tuple[tuple[int, ...], ...]
        data eos_stop_strings: tuple[str, ...]
        """,
    ),
    Differs(
        "one automaton for all stop strings, asked before the text is trimmed; a stop is found once, with its place",
        """
        method find_stop: (piece)
        data partial_stop_length: int
        method reset: ()
        """,
    ),
    Differs("almost every token is settled by one lookup", "method may_end: (token)"),
    Differs(
        "the rules of a request in one place",
        "classmethod from_sampling_params: (params, *, model_eos_token_ids=(), stop_sequences=())",
    ),
    Differs(
        WIRE + "; the text remembered goes along",
        """
        method to_wire: ()
        classmethod from_wire: (wire)
        """,
    ),
)
contract(
    CONTEXT,
    "GenerationOutput",
    """
    kind: frozen pydantic model
    field request_id: RequestID
    field final_status: GenerationStatus
    field output: list[OutputContent]
    field usage: Usage | None = None
    data is_done: bool
    """,
    Differs(
        STRUCT,
        """
        kind: frozen keyword-only struct
        wire: tag 'GenerationOutput', omits defaults
        """,
    ),
    Differs(
        "images are its most frequent content, and they are raw pixels",
        """
        data images: list[NDArray[Any]]
        classmethod of_images: (request_id, images)
        """,
    ),
)
SAMPLING_INPUT = """
    kind: dataclass
    field top_k: int | None = None
    field top_p: float | None = None
    field min_p: float | None = None
    field temperature: float | None = None
    field thinking_temperature: float | None = None
    field frequency_penalty: float | None = None
    field presence_penalty: float | None = None
    field repetition_penalty: float | None = None
    field max_new_tokens: int | None = None
    field min_new_tokens: int | None = None
    field ignore_eos: bool | None = None
    field stop: list[str] | None = None
    field stop_token_ids: list[int] | None = None
    field detokenize: bool | None = None
    field seed: int | None = None
    field logits_processors: Sequence[LogitsProcessor] | None = None
"""
NAMED_PROCESSORS = "logits processors that the worker knows by name travel, with their options"
contract(
    CONTEXT,
    "SamplingParamsInput",
    SAMPLING_INPUT,
    Differs(NAMED_PROCESSORS, "field named_processors: list[NamedProcessor] | None = None"),
)
contract(
    CONTEXT,
    "SamplingParamsGenerationConfigDefaults",
    """
    kind: frozen dataclass
    field temperature: float | None = None
    field top_p: float | None = None
    field top_k: int | None = None
    field repetition_penalty: float | None = None
    field max_new_tokens: int | None = None
    field min_new_tokens: int | None = None
    field do_sample: bool | None = None
    field eos_token_id: int | list[int] | None = None
    data values_to_update: dict[str, Any]
    """,
    Differs("lists are copied in and out, so that requests share none; always hashable"),
)
contract(
    CONTEXT,
    "SamplingParams",
    """
    kind: dataclass
    field top_k: int = -1
    field top_p: float = 1
    field min_p: float = 0.0
    field temperature: float = 1
    field thinking_temperature: float | None = None
    field frequency_penalty: float = 0.0
    field presence_penalty: float = 0.0
    field repetition_penalty: float = 1.0
    field max_new_tokens: int | None = None
    field min_new_tokens: int = 0
    field ignore_eos: bool = False
    field stop: list[str] | None = None
    field stop_token_ids: list[int] | None = None
    field detokenize: bool = True
    field seed: int = random
    field logits_processors: Sequence[LogitsProcessor] | None = None
    classmethod from_input_and_generation_config: (input_params, sampling_params_defaults)
    data needs_penalties: bool
    method log_sampling_info: ()
    """,
    Differs(
        "every value is checked whenever it is set, NaN included; lists are copied and bounded; a caller's temperature "
        "samples even where the model's config is greedy; seeds cost no system call",
    ),
    Differs(NAMED_PROCESSORS, "field named_processors: list[NamedProcessor] | None = None"),
    Differs(
        "the model's defaults lie with the worker, so it has to know what the caller left open",
        "data given: frozenset[str]",
    ),
)

# -- requests ---------------------------------------------------------------------------------------------------------

REQUESTS = "Requests"

contract(
    REQUESTS,
    "RequestID",
    """
    kind: frozen dataclass
    field value: str = fresh
    method __str__: ()
    """,
    Differs(
        "a hand-written frozen class: 1 to 128 printable characters, hashed once, and its bare string on the wire "
        "(docs/decisions/0003-request-id.md)",
        """
        kind: class
        call: (value=None)
        -field value
        data value: str
        method to_wire: ()
        classmethod from_wire: (value)
        """,
    ),
)
contract(
    REQUESTS,
    "DUMMY_REQUEST_ID",
    """
    kind: constant
    value: RequestID(value='cuda_graph_dummy')
    """,
    Differs("refused from the wire, so that no client's id meets it"),
    line="Marks synthetic work (warm-up, graph capture) inside a worker.",
)
contract(
    REQUESTS,
    "Request",
    """
    kind: runtime-checkable protocol
    data request_id: RequestID
    method __str__: ()
    """,
)
contract(
    REQUESTS,
    "RequestType",
    """
    kind: type variable
    bound: Request
    variance: contravariant
    """,
    line="The request that a tokenizer or a queue takes.",
)
contract(
    REQUESTS,
    "OpenResponsesRequest",
    """
    kind: frozen pydantic model
    field request_id: RequestID
    field body: OpenResponsesRequestBody
    classmethod from_fastapi_request: async (request)
    method __str__: ()
    """,
    Differs(STRUCT, "kind: frozen keyword-only struct"),
    Differs(
        "wrong JSON and wrong shapes are InvalidRequest like everything else; nothing is downloaded but by the "
        "application's own fetcher, and errors name no address",
    ),
    Differs("converted to requests of ours and back, field by field: see the end of this page"),
)

# -- tokens -----------------------------------------------------------------------------------------------------------

TOKENS = "Tokens"

contract(
    TOKENS,
    "TokenSlice",
    """
    kind: alias
    is: ndarray[tuple[Any, ...], dtype[int64]]
    """,
    Differs("every slice handed out is read-only"),
    line="An array of int64 token ids, shape `(n,)`.",
)
contract(
    TOKENS,
    "LogProbabilities",
    """
    kind: struct
    wire: tag 'LogProbabilities', omits defaults
    field token_log_probabilities: list[float]
    field top_log_probabilities: list[dict[int, float]]
    field sampled_token_ids: list[int]
    """,
    Differs(
        "newer than the rest and required there: code that gives two lists runs too",
        "field sampled_token_ids: list[int] = []",
    ),
    Differs("a client has no tokenizer", "field pieces: dict[int, bytes] = {}"),
    Differs("lists of different lengths are refused"),
)
contract(
    TOKENS,
    "Range",
    """
    kind: dataclass
    field start: int
    field end: int
    method __len__: ()
    method bump_start: (n)
    method bump_end: (n)
    method advance: ()
    """,
    Differs("checked on arrival too"),
)
contract(
    TOKENS,
    "TokenBuffer",
    """
    kind: dataclass
    call: (array)
    data array: TokenSlice
    data all: TokenSlice
    data prompt: TokenSlice
    data generated: TokenSlice
    data prompt_length: int
    data generated_length: int
    data active: TokenSlice
    data processed_length: int
    data active_length: int
    data current_position: int
    data actively_chunked: bool
    data has_outstanding_generated_tokens: bool
    method __len__: ()
    method __getitem__: (key)
    method chunk: (chunk_size)
    method advance_chunk: ()
    method advance_with_token: (token)
    method rewind_processing: (n)
    method skip_processing: (n)
    method apply_processing_offset: (value)
    method overwrite_last_token: (token)
    method consume_recently_generated_tokens: ()
    method reset_as_new_prompt: (delete_last_generated_token=False)
    """,
    Differs("its state changes through its methods alone, and no view of it can be written", "kind: class"),
    Differs(
        "a placeholder is a state, not a magic id among the tokens",
        """
        method advance_with_placeholder: ()
        data has_placeholder: bool
        """,
    ),
    Differs(
        WIRE + ": its tokens without spare slots, checked again on arrival",
        """
        method to_wire: ()
        classmethod from_wire: (wire)
        """,
    ),
    Differs(
        "`current_position` is where the window ends, whatever the offset; a reset forgets the offset; a call that "
        "raises has changed nothing; the caller's array is copied; a negative id cannot be appended",
    ),
)

# -- logits -----------------------------------------------------------------------------------------------------------

LOGITS = "Logit processors"

contract(
    LOGITS,
    "ProcessorInputs",
    """
    kind: dataclass
    field logits: Buffer
    field context: TextGenerationContext
    """,
    Differs(
        "an array of the device at hand (NumPy or CuPy) in place of the reference's own buffer", "field logits: Any"
    ),
)
contract(
    LOGITS,
    "LogitsProcessor",
    """
    kind: alias
    is: Callable[[ProcessorInputs], None]
    """,
    line="Changes one sequence's logits in place; what it returns is ignored.",
)
contract(
    LOGITS,
    "BatchProcessorInputs",
    """
    kind: dataclass
    field logits: Buffer
    field logit_offsets: Buffer | None
    field context_batch: Sequence[TextGenerationContext]
    """,
    Differs(
        "arrays of the device at hand (NumPy or CuPy) in place of the reference's own buffers",
        """
        field logits: Any
        field logit_offsets: Any | None
        """,
    ),
)
contract(
    LOGITS,
    "BatchLogitsProcessor",
    """
    kind: alias
    is: Callable[[BatchProcessorInputs], None]
    """,
    line="Changes a whole step's logits in place, after the processors of every sequence.",
)

# -- LoRA -------------------------------------------------------------------------------------------------------------

LORA = "LoRA"

contract(
    LORA,
    "LoRAType",
    """
    kind: enum
    value A: 'lora_A'
    value B: 'lora_B'
    value B_KV: 'lora_B_kv'
    value BIAS: 'lora.bias'
    """,
)
contract(
    LORA,
    "LoRAOperation",
    """
    kind: enum
    value LOAD: 'load'
    value UNLOAD: 'unload'
    """,
)
contract(
    LORA,
    "LoRAStatus",
    """
    kind: enum
    value SUCCESS: 'success'
    value LOAD_NAME_EXISTS: 'load_name_exists'
    value UNLOAD_NAME_NONEXISTENT: 'unload_name_nonexistent'
    value LOAD_ERROR: 'load_error'
    value UNLOAD_ERROR: 'unload_error'
    value LOAD_INVALID_PATH: 'load_invalid_path'
    value LOAD_INVALID_ADAPTER: 'load_invalid_adapter'
    value UNSPECIFIED_ERROR: 'unspecified_error'
    """,
)
contract(
    LORA,
    "LoRARequest",
    """
    kind: struct
    wire: omits defaults
    field operation: LoRAOperation
    field lora_name: str
    field lora_path: str | None = None
    """,
    Differs("a load without a path, an empty name, and names and paths without end are refused"),
)
contract(
    LORA,
    "LoRAResponse",
    """
    kind: struct
    field status: LoRAStatus
    field message: str | list[str]
    """,
)
contract(
    LORA,
    "LORA_REQUEST_ENDPOINT",
    """
    kind: constant
    value: 'lora_request'
    """,
    line="Name of the endpoint that takes LoRA requests.",
)
contract(
    LORA,
    "LORA_RESPONSE_ENDPOINT",
    """
    kind: constant
    value: 'lora_response'
    """,
    line="Name of the endpoint that LoRA responses come from.",
)

# -- utilities --------------------------------------------------------------------------------------------------------

UTILITIES = "Utilities"

contract(
    UTILITIES,
    "SharedMemoryArray",
    """
    kind: class
    call: (name, shape, dtype)
    data name: stored
    data shape: stored
    data dtype: stored
    """,
    Differs(
        "names a block of a pool that is reused, and a host: a stale, forged or foreign handle is a clear error",
        """
        call: (name, shape, dtype, offset=0, generation=0, host='')
        data offset: stored
        data generation: stored
        data host: stored
        """,
    ),
    Differs(
        "its parts, as readers need them",
        """
        data numpy_dtype: dtype[Any]
        data nbytes: int
        data pool_name: str
        data segment_number: int
        """,
    ),
    Differs(
        "made of an owner's own parts, which need no checks: those of a handle that comes from elsewhere are checked",
        "classmethod of_own: (name, shape, dtype, offset, generation, host)",
    ),
    Differs(WIRE, "method to_wire: ()"),
)
contract(
    UTILITIES,
    "msgpack_numpy_encoder",
    """
    kind: function
    call: (use_shared_memory=False, shared_memory_threshold=24000000)
    """,
    Differs(
        "arrays lie in a pool, not in a segment each; None is one of the process",
        "call: (use_shared_memory=False, shared_memory_threshold=24000000, *, pool=None)",
    ),
    Differs("extension types in place of maps with magic keys; unsupported values are a TypeError that names the path"),
)
contract(
    UTILITIES,
    "msgpack_numpy_decoder",
    """
    kind: function
    call: (type_, copy=False)
    """,
    Differs("one error family, declared dtypes and ranks are checked, and the same bytes can be decoded many times"),
)
