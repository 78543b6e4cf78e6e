"""Text generation by decoders of the Llama family: the pipeline that serves `PipelineTask.TEXT_GENERATION`.

Reads a model's folder, makes contexts of requests, and runs the loop of `..text.engine`; without a folder it serves the
small model that comes with the package (`..text.small`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from ...errors import ConfigError, InvalidRequest
from ...proto.eos import EOSTracker
from ...proto.logits import NamedProcessor
from ...proto.lora import MAX_LORAS, LoRAOperation, LoRARequest, LoRAStatus
from ...proto.pipeline import Pipeline
from ...proto.reasoning_parsers import reasoning_parser
from ...proto.request import RequestID
from ...proto.text_batch import TextGenerationInputs
from ...proto.text_context import TextContext
from ...proto.text_output import TextGenerationOutput
from ...proto.text_request import TextGenerationRequest
from ...proto.tokens import TokenBuffer
from ..device import Device, select_device
from ..text.blocks import BlockManager
from ..text.draft_model import DraftModel
from ..text.engine import TextEngine
from ..text.generation import GenerationDefaults
from ..text.grammar import GrammarCompiler
from ..text.grammar_hold import hold
from ..text.lora import MAX_ADAPTERS, MAX_ADAPTERS_BYTES, Adapters, attach
from ..text.models.base import Model, ModelCache
from ..text.models.cache import KVCache
from ..text.models.decoder import Decoder
from ..text.processors import Setting, deployment_processors
from ..text.reading import AnswerReader, ReadContext
from ..text.sampling import Sampler
from ..text.scheduler import Scheduler
from ..text.speculation import MAX_DRAFTS, DraftModelProposer, NGramProposer, Proposer, Speculation
from ..text.structured import CALL_FORMATS, StructuredOutput, is_held
from ..text.tokenizer import TextTokenizer
from ..text.vocabulary import Vocabulary
from ._options import read_options, require_batch_size, require_within

#: The model that comes with the package.
SMALL_MODEL = Path(__file__).parents[1] / "text" / "small"


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a deployment may set."""

    #: A folder as Hugging Face's libraries write it; None: the small model that comes with the package.
    model_dir: str | None = None
    #: Most requests that run at once; more wait.
    max_batch_size: int = 64
    #: Most tokens in one step, prompts and answers together: more fill a machine better, fewer keep streams smooth.
    max_step_tokens: int = 512
    #: Most tokens of one prompt in one step.
    max_chunk_tokens: int = 256
    #: Tokens in a block of the cache: what is shared between prompts are whole blocks.
    block_size: int = 16
    #: Memory for keys and values, in bytes; None: as much as `max_batch_size` requests of the longest kind need, but at
    #: most 1 GiB.
    cache_bytes: int | None = None
    #: Whether prompts that begin alike share what has been computed of them.
    prefix_cache: bool = True
    #: LoRA adapters that are there from the start: their names and PEFT folders. More are loaded while it runs.
    adapters: dict[str, str] = {}
    #: Most adapters at a time, and most bytes of their weights in float32; one more is refused, none is evicted.
    max_adapters: int = MAX_ADAPTERS
    adapter_bytes: int = MAX_ADAPTERS_BYTES
    #: Who guesses tokens ahead, which changes no text: "ngram" (what followed in the request before), "draft_model" (a
    #: smaller model of the same vocabulary, in `draft_model_dir`), or nobody.
    speculation: Literal["ngram", "draft_model"] | None = None
    draft_model_dir: str | None = None
    #: Most tokens guessed ahead for a request in one step.
    draft_tokens: int = 4
    #: Guesses are made as long as a step has no more tokens than this, with them; None: than cost hardly more than one.
    guessing_tokens: int | None = None
    #: How the model marks its thinking and writes its calls, by the names of docs/parsers.md; None: it does not.
    reasoning_parser: str | None = None
    tool_parser: str | None = None
    #: Processors of every step's logits, behind those of the requests.
    logits_processors: list[NamedProcessor] = []
    #: Keys of the model's config files that are not known and may be passed by, since they change nothing.
    ignore_config_keys: list[str] = []
    #: "auto", "cpu" or "gpu".
    device: str = "auto"

    def __post_init__(self) -> None:
        require_batch_size(self.max_batch_size)
        require_within("max_step_tokens", self.max_step_tokens, self.max_batch_size, 1 << 20)
        require_within("max_chunk_tokens", self.max_chunk_tokens, 1, 1 << 20)
        require_within("block_size", self.block_size, 8, 1024)
        if self.block_size % 8:
            raise ValueError(f"`block_size` must be a multiple of 8, not {self.block_size}")
        require_within("cache_bytes", self.cache_bytes or 1, 1, 1 << 50)
        require_within("draft_tokens", self.draft_tokens, 1, MAX_DRAFTS)
        require_within("guessing_tokens", self.guessing_tokens or 0, 0, 1 << 20)
        if (self.speculation == "draft_model") != (self.draft_model_dir is not None):
            raise ValueError('`draft_model_dir` belongs to `speculation` "draft_model", which needs it')
        require_within("max_adapters", self.max_adapters, 1, MAX_LORAS)
        require_within("adapter_bytes", self.adapter_bytes, 1, 1 << 50)


#: Most that the cache takes where nothing is said, in bytes.
DEFAULT_CACHE_BYTES = 1 << 30


class Prompt(NamedTuple):
    """A request's prompt in tokens, and what its context is made of beside them."""

    tokens: list[int]
    context_type: type[ReadContext] = ReadContext
    fields: Mapping[str, Any] = {}


class Llama(Pipeline[TextGenerationInputs[TextContext], TextGenerationOutput]):
    """The pipeline. One `execute` is one step: some requests get a token, prompts move on, some wait for room.

    Other models of the same contracts override what reads the model, and what reads a prompt.
    """

    #: See `Scheduler`; our decoders need it not.
    whole_blocks = False

    lora: Adapters | None

    def __init__(self, folder: Path, device: Device, options: DeploymentOptions) -> None:
        self._max_batch_size = options.max_batch_size
        ignored = tuple(options.ignore_config_keys)
        self.tokenizer = TextTokenizer(folder)
        self.defaults = GenerationDefaults.read(folder, ignored=ignored)
        self.decoder, cache = self._load(folder, device, options)
        self.lora = self._adapters(options)
        config = self.decoder.config
        if self.tokenizer.vocabulary > config.vocabulary:
            raise ConfigError(
                f"{folder}: the tokenizer has {self.tokenizer.vocabulary} tokens, the model {config.vocabulary}: "
                "they do not belong together",
            )
        blocks = BlockManager(blocks=cache.blocks, block_size=cache.block_size, caching=options.prefix_cache)
        self.scheduler = Scheduler(
            blocks,
            max_tokens=options.max_step_tokens,
            max_chunk=options.max_chunk_tokens,
            max_running=options.max_batch_size,
            whole_blocks=self.whole_blocks,
        )
        self._vocabulary = Vocabulary.from_tokenizer(self.tokenizer.backend)
        self._reader = AnswerReader(
            self._vocabulary, self.tokenizer, reasoning=options.reasoning_parser, tools=options.tool_parser
        )
        self._options = options
        self._structured: StructuredOutput | None = None
        self._making = threading.Lock()
        self.engine = TextEngine(
            self.decoder,
            cache,
            self.scheduler,
            self._vocabulary,
            speculation=_speculation(options, self.decoder, self.tokenizer),
            guessing_tokens=options.guessing_tokens or self.decoder.cheap_rows,
            batch_processors=deployment_processors(options.logits_processors, Setting(device, config.vocabulary)),
        )
        #: Longest sequence, prompt and answer, in tokens.
        self.max_length = min(config.positions, self.defaults.max_length or config.positions, self.scheduler.capacity)

    def _load(self, folder: Path, device: Device, options: DeploymentOptions) -> tuple[Model[Any], ModelCache]:
        """The model of a folder, and room for the keys and values of its requests."""
        decoder = Decoder.load(folder, device, ignored_keys=tuple(options.ignore_config_keys))
        size = KVCache.block_bytes(decoder.config, options.block_size)
        blocks = cache_blocks(options, size=size, positions=decoder.config.positions)
        return decoder, KVCache(decoder.config, blocks=blocks, block_size=options.block_size, device=device)

    def _adapters(self, options: DeploymentOptions) -> Adapters | None:
        """Where this model's adapters are kept; None where it takes none."""
        assert isinstance(self.decoder, Decoder), "what loads another model says which adapters it takes"
        return _adapters(self.decoder, options)

    @property
    def max_batch_size(self) -> int:
        """Most requests that run at once."""
        return self._max_batch_size

    def new_context(self, request: TextGenerationRequest) -> TextContext:
        """The context of a request: its prompt in tokens, its limits and stop rules. Called as requests arrive.

        InvalidRequest for what this model cannot do, or a prompt that leaves no room for an answer.
        """
        prompt = self._prompt(request)
        params = self.defaults.under(request.sampling_params)
        tokens = np.array(prompt.tokens, np.int64)
        room = self.max_length - len(tokens)
        if room < 1:
            raise InvalidRequest(
                f"the prompt has {len(tokens)} tokens; the model takes {self.max_length}, and one at least is to come",
            )
        if params.max_new_tokens == 0:
            raise InvalidRequest("`max_new_tokens` is 0: at least one token is generated")
        wanted = room if params.max_new_tokens is None else params.max_new_tokens
        thinking = self._reader.thinks_after(tokens.tolist())
        context = prompt.context_type(
            request_id=request.request_id,
            model_name=request.model_name,
            tokens=TokenBuffer(tokens),
            max_length=len(tokens) + min(wanted, room),
            eos_tracker=EOSTracker.from_sampling_params(params, model_eos_token_ids=self.defaults.eos_token_ids),
            sampling_params=params,
            log_probabilities=request.logprobs,
            log_probabilities_echo=request.echo,
            vocab_size=self.decoder.config.vocabulary,
            cache_salt=request.cache_salt,
            in_reasoning_phase=thinking,
            **prompt.fields,
        )
        if self.lora is not None:
            attach(context, self.lora.get(request.model_name))
        self._reader.read(context, request.tools)
        if is_held(request.response_format, request.tools):
            grammar = self._grammars().hold(request.response_format, request.tools, thinking=thinking)
            if grammar is not None:
                hold(context, grammar)
        return context

    def is_slow_to_read(self, request: TextGenerationRequest) -> bool:
        """Whether a grammar has to be compiled for the request."""
        if not is_held(request.response_format, request.tools):
            return False
        return self._structured is None or not self._structured.is_compiled(request.response_format, request.tools)

    def _grammars(self) -> StructuredOutput:
        """Made with the first request for structured output, which needs a library of its own."""
        with self._making:
            if self._structured is None:
                self._structured = self._make_structured()
            return self._structured

    def _make_structured(self) -> StructuredOutput:
        def encode(text: str) -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=False)

        thinking, calls = self._options.reasoning_parser, self._options.tool_parser
        compiler = GrammarCompiler(
            self._vocabulary,
            size=self.decoder.config.vocabulary,
            end_ids=self.defaults.eos_token_ids,
            encode=encode,
        )
        return StructuredOutput(
            compiler,
            encode,
            reasoning=None if thinking is None else reasoning_parser(thinking),
            calls=calls if calls in CALL_FORMATS else None,
        )

    def _prompt(self, request: TextGenerationRequest) -> Prompt:
        if request.images or request.videos:
            raise InvalidRequest("this model reads text only, no images or videos")
        return Prompt(self._tokens(request))

    def _tokens(self, request: TextGenerationRequest) -> list[int]:
        prompt = request.prompt
        if request.messages:
            tokens = self._encode_chat(self._render(request))
        elif isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt)
        else:
            tokens = list(prompt or ())
        if not tokens:
            raise InvalidRequest("the prompt has no tokens")
        size = self.decoder.config.vocabulary
        if max(tokens) >= size:
            raise InvalidRequest(f"the prompt holds the token id {max(tokens)}; ids are 0 to {size - 1}")
        return tokens

    def _render(self, request: TextGenerationRequest) -> str:
        return self.tokenizer.render(request.messages, tools=request.tools, options=request.chat_template_options)

    def _encode_chat(self, text: str) -> list[int]:
        # A template writes the special tokens itself.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def execute(self, inputs: TextGenerationInputs[TextContext]) -> dict[RequestID, Any]:
        """One step; requests without a token in it are not in the answer."""
        return dict(self.engine.step(inputs.flat_batch))

    def release(self, request_id: RequestID) -> None:
        """Free the request's blocks."""
        self.engine.release(request_id)


def create(**options: Any) -> Llama:
    """The pipeline of a deployment; see `DeploymentOptions`.

    Raises ConfigError for a wrong option, a model that is not supported, and where a library is missing.
    """
    chosen = read_options(DeploymentOptions, options, pipeline="llama")
    folder = SMALL_MODEL if chosen.model_dir is None else Path(chosen.model_dir).expanduser()
    return Llama(folder, select_device(chosen.device), chosen)


def _adapters(decoder: Decoder, options: DeploymentOptions) -> Adapters:
    """Those that the deployment names, loaded; ConfigError for one that cannot be."""
    adapters = Adapters(
        decoder.device,
        decoder.adaptable,
        fit=decoder.fit,
        max_adapters=options.max_adapters,
        max_bytes=options.adapter_bytes,
    )
    for name, path in options.adapters.items():
        folder = str(Path(path).expanduser().absolute())
        answer = adapters.handle(LoRARequest(LoRAOperation.LOAD, name, folder))
        if answer.status is not LoRAStatus.SUCCESS:
            raise ConfigError(f"`adapters`: {name!r:.80} cannot be loaded ({answer.status.value}): {answer.message}")
    return adapters


def _speculation(options: DeploymentOptions, decoder: Model[Any], tokenizer: TextTokenizer) -> Speculation | None:
    """Who guesses ahead, as the deployment says."""
    if options.speculation is None:
        return None
    if options.speculation == "ngram":
        proposer: Proposer = NGramProposer()
    else:
        proposer = _draft_model(options, decoder, tokenizer)
    return Speculation(proposer, most=options.draft_tokens)


def _draft_model(options: DeploymentOptions, decoder: Model[Any], tokenizer: TextTokenizer) -> DraftModelProposer:
    folder = Path(options.draft_model_dir or "").expanduser()
    drafter = Decoder.load(folder, decoder.device, ignored_keys=tuple(options.ignore_config_keys))
    config, wanted = drafter.config, decoder.config.vocabulary
    same = not (folder / "tokenizer.json").is_file() or TextTokenizer(folder).tokens == tokenizer.tokens
    if config.vocabulary != wanted or not same:
        raise ConfigError(f"{folder}: a draft model has the vocabulary of its model, which has {wanted} tokens")
    size = KVCache.block_bytes(config, options.block_size)
    blocks = cache_blocks(options, size=size, positions=config.positions)
    cache = KVCache(config, blocks=blocks, block_size=options.block_size, device=decoder.device)
    model = DraftModel(drafter, cache, ahead=MAX_DRAFTS, max_chunk=options.max_chunk_tokens)
    sampler = Sampler(decoder.device, vocabulary=wanted)
    return DraftModelProposer(sampler, model.step, model.forget, model.ready)


def cache_blocks(options: DeploymentOptions, *, size: int, positions: int) -> int:
    """Blocks that the cache has, where one takes `size` bytes and the longest sequence has so many `positions`."""
    longest = -(-positions // options.block_size)
    if options.cache_bytes is None:
        return max(min(options.max_batch_size * longest, DEFAULT_CACHE_BYTES // size), 1)
    if options.cache_bytes < size:
        raise ConfigError(f"`cache_bytes` is {options.cache_bytes}, and one block takes {size}")
    return min(options.cache_bytes // size, options.max_batch_size * longest)
