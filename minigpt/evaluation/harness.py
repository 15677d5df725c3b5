"""A model for EleutherAI's lm-evaluation-harness: `--model minigpt`, without PyTorch.

    minigpt-lm-eval --model minigpt --model_args pretrained=FOLDER,dtype=bf16 --tasks piqa,arc_easy

`minigpt-lm-eval` is the harness's own command line, to which `MinigptLM` has been added. Version
0.4.13 does not look for the models of other packages; later ones find it by the entry point that
setup.cfg declares, and `lm_eval --model minigpt` is the same. In Python:

    import minigpt.evaluation.harness  # registers "minigpt"
    lm_eval.simple_evaluate("minigpt", "pretrained=FOLDER", tasks=["piqa"])

The functions that answer the harness's three kinds of requests do not need it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ..api import GPTModel
from ..arguments import checked_bool, checked_integer
from ..bundled import BUNDLED_MODEL
from ..config import GPTConfig
from ..errors import InputError, MinigptError, short_repr
from ..generation.sampler import SamplingParams
from ..generation.scheduler import Request, Scheduler
from ..tokenizer.tokenizer import GPTTokenizer
from .perplexity import Windows, min_tokens, with_start
from .tasks import Continuation, Score, make_continuation, score

_missing: ImportError | None = None
try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry
except ImportError as error:
    LM, _missing = object, error

Pair = tuple[str, str]  # a context and its continuation, with the space between them
T = TypeVar("T")

_REQUESTS = 1024  # scored together; after each such chunk its results are in the harness's cache
_SLOTS = 16  # texts generated together
_MAX_GEN_TOKS = 256  # the harness's default


# ---- the three kinds of requests ----


def log_likelihoods(
    model: GPTModel, tokenizer: GPTTokenizer, pairs: Sequence[Pair], allow_special: bool = False
) -> list[Score]:
    """The score of each continuation, at least one: ln p, and whether greedy decoding writes it.

    Raises InputError for a continuation that has no tokens, or more than the model's context.
    """
    made = []
    for n, (context, continuation) in enumerate(pairs):
        where = f"request {n}"
        made.append(
            make_continuation(
                tokenizer, model.config, where, context, continuation, allow_special, delimiter=""
            )
        )
        if not len(made[-1].ids):
            raise InputError(f"{where}: {short_repr(continuation)} has no token to score")
    return score(model, made).scores


def rolling_log_likelihoods(
    model: GPTModel, tokenizer: GPTTokenizer, texts: Sequence[str], allow_special: bool = False
) -> list[float]:
    """ln p of each text, read in the windows of `perplexity(…, rolling=True)`; 0 of an empty one.

    A model without a start token leaves out the first token of each.
    """
    windows: list[Continuation] = []
    owners: list[int] = []
    for n, text in enumerate(texts):
        found = _windows(model.config, tokenizer.encode(text, "np", allow_special)[0])
        windows += found
        owners += [n] * len(found)
    sums = [0.0] * len(texts)
    if windows:
        for n, each in zip(owners, score(model, windows).scores, strict=True):
            sums[n] += each.log_p
    return sums


def _windows(config: GPTConfig, ids: Any) -> list[Continuation]:
    """The tokens that each rolling window predicts, after those that are only its context."""
    if len(ids) < min_tokens(config):
        return []
    sequence = with_start(ids, config)
    windows = Windows("rolling", config.n_positions, config.n_positions)
    return [
        Continuation(sequence[begin : first + 1], sequence[first + 1 : end + 1])
        for begin, first, end in windows.of(len(sequence) - 1)
    ]


def generate_until(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    requests: Sequence[tuple[str, dict[str, Any]]],
    allow_special: bool = False,
    seed: int = 0,
    done: Callable[[], None] | None = None,
) -> list[str]:
    """The continuation of each context up to the first of its stop strings.

    requests  (context, options): `until`, a string or a list of them; `max_gen_toks`, by default
              256; `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`. Greedy unless temperature
              is above 0
    seed      of the random numbers, which each request has for itself
    done      called as each request ends

    A context is truncated on the left to n_positions − max_gen_toks. Raises InputError for an
    option that is not among these or out of its range.
    """
    scheduler = Scheduler(model, slots=min(_SLOTS, max(1, len(requests))))
    texts: dict[Request, _Text] = {}
    for row, (context, options) in enumerate(requests):
        params, until = _sampling(model.config, tokenizer, options, seed)
        ids = tokenizer.encode(context, "np", allow_special)[0]
        room = model.config.n_positions - params.max_new_tokens
        request = scheduler.add_request(ids[max(0, len(ids) - room) :], params, row)
        texts[request] = _Text(tokenizer, until)
    while scheduler.num_unfinished:
        for event in scheduler.step():
            if event.request.error is not None:
                raise event.request.error
            if event.token_id is not None and texts[event.request].push(event.token_id):
                scheduler.cancel(event.request, "stop")
            if event.finished and done:
                done()
    return [text.until_stop() for text in texts.values()]


class _Text:
    """The text of a request as its tokens come, and the strings that end it."""

    def __init__(self, tokenizer: GPTTokenizer, stops: list[str]) -> None:
        self._decoder = tokenizer.stream_decoder()
        self._stops = stops
        self._text = ""

    def push(self, token_id: int) -> bool:
        """Add a token; whether a stop string has come."""
        self._text += self._decoder.push(token_id)
        return any(stop in self._text for stop in self._stops)

    def until_stop(self) -> str:
        """The whole text up to the first stop string."""
        text = self._text + self._decoder.flush()
        return text[: min((i for stop in self._stops if (i := text.find(stop)) >= 0), default=None)]


# Names of the number of new tokens in other engines, which tasks use, too.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def _sampling(
    config: GPTConfig, tokenizer: GPTTokenizer, options: dict[str, Any], seed: int
) -> tuple[SamplingParams, list[str]]:
    """The options of a generation, and its stop strings."""
    options = dict(options)
    lengths = [value for name in _LENGTHS if (value := options.pop(name, None)) is not None]
    length = checked_integer(
        "max_gen_toks", lengths[0] if lengths else _MAX_GEN_TOKS, 0, config.n_positions - 1,
        "below the model's context",
    )  # fmt: skip
    until = options.pop("until", None) or []
    stops = [until] if isinstance(until, str) else until
    if not (isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)):
        raise InputError(f"until {short_repr(until)}: must be a string or a list of strings")
    temperature = options.pop("temperature", None) or 0.0
    if options.pop("do_sample", None) is False:
        temperature = 0.0
    sampling = {name: options.pop(name, None) for name in ("top_k", "top_p", "min_p")}
    if options:
        name, value = next(iter(options.items()))
        raise InputError(
            f"{name}={short_repr(value)}: is no option of generation here; there are until, "
            "max_gen_toks, do_sample, temperature, top_k, top_p, min_p"
        )
    params = SamplingParams(
        length, temperature, **sampling, seed=seed, vocab_size=tokenizer.vocab_size
    )
    return params, [stop for stop in stops if stop]


# ---- the harness ----


class MinigptLM(LM):  # type: ignore[misc]
    """The model class of `--model minigpt`; `--model_args` are the arguments of __init__."""

    def __init__(
        self,
        pretrained: object = str(BUNDLED_MODEL),
        dtype: str = "auto",
        threads: int | None = None,
        tokenizer: object = None,
        special: bool = False,
        seed: int = 0,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **others: object,
    ) -> None:
        """
        pretrained      a model source. Default: the bundled model
        dtype, threads  as in `GPTModel.from_pretrained`
        tokenizer       a source of the tokenizer. Default: the model's
        special         True to read special tokens such as `<|endoftext|>` in texts as these
                        tokens. Default: plain text
        seed            of the random numbers of generate_until
        batch_size, max_batch_size, device  which the harness passes, are ignored: requests are
                        batched by their length, and computed by the CPU

        Raises MinigptError, of one line, where lm_eval is not installed, for another argument, and
        for a model that cannot be loaded.
        """
        if _missing is not None:
            raise MinigptError(
                f'lm_eval cannot be imported ({_missing}); install it with pip install ".[eval]"'
            )
        super().__init__()
        for name in others:
            raise InputError(
                f"model_args: {name} is none of pretrained, dtype, threads, tokenizer, special, "
                "seed",
                name,
            )
        self._special = checked_bool("special", special)
        self._seed = checked_integer("seed", seed, 0)
        source = str(pretrained)  # the harness makes a number of a name of digits
        vocabulary = source if tokenizer is None else str(tokenizer)
        self._tokenizer = GPTTokenizer.from_pretrained(vocabulary)
        self._model = GPTModel.from_pretrained(source, dtype=dtype, threads=threads)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(ln p, greedy) of each request's continuation."""
        results: list[tuple[float, bool]] = []
        for chunk in _chunks(requests, disable_tqdm, "loglikelihood"):
            pairs = [request.args for request in chunk]
            scores = log_likelihoods(self._model, self._tokenizer, pairs, self._special)
            for pair, each in zip(pairs, scores, strict=True):
                results.append((each.log_p, each.greedy))
                self.cache_hook.add_partial("loglikelihood", pair, results[-1])
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """ln p of each request's text."""
        results: list[float] = []
        for chunk in _chunks(requests, disable_tqdm, "loglikelihood_rolling"):
            texts = [request.args[0] for request in chunk]
            sums = rolling_log_likelihoods(self._model, self._tokenizer, texts, self._special)
            for text, log_p in zip(texts, sums, strict=True):
                results.append(log_p)
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), log_p)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each request's context."""
        from tqdm import tqdm

        arguments = [request.args for request in requests]
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            texts = generate_until(
                self._model, self._tokenizer, arguments, self._special, self._seed, bar.update
            )
        for argument, text in zip(arguments, texts, strict=True):
            self.cache_hook.add_partial("generate_until", argument, text)
        return texts


def _chunks(requests: Sequence[T], disable_tqdm: bool, name: str) -> Iterator[Sequence[T]]:
    """Yield the requests, _REQUESTS at a time, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(requests), desc=name, disable=disable_tqdm) as bar:
        for start in range(0, len(requests), _REQUESTS):
            chunk = requests[start : start + _REQUESTS]
            yield chunk
            bar.update(len(chunk))


if _missing is None and "minigpt" not in model_registry:
    model_registry.register("minigpt", target=MinigptLM)


def main() -> None:
    """Run the harness's command line, which knows `--model minigpt`."""
    try:
        if _missing is not None:
            MinigptLM()  # raises the error
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except MinigptError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) and error.argument else 1)


if __name__ == "__main__":
    main()
