"""Generation as text: new tokens through the tokenizer's decoder, up to a stop string."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NoReturn, Protocol

from ..arguments import check_model, check_tokenizer, checked_strings
from ..errors import InputError
from .generate import checked_single_prompt, events, schedule
from .sampler import Eos, SamplingParams
from .scheduler import Finish, Model


class Decoder(Protocol):
    """Turns tokens into text as they come; see tokenizer.StreamDecoder."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """The part of GPTTokenizer that TextStream uses."""

    @property
    def vocab_size(self) -> int: ...

    def stream_decoder(self) -> Decoder: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class StopFilter:
    """Passes text on, up to the start of the first stop string.

    It withholds text that could become a stop string. The result does not depend on how the text
    is cut into chunks: while an earlier start may still complete, a complete stop string waits.
    Hidden text, that of special tokens, can be part of a stop string, and is never passed on.

        stops ["###"]:  push("a #") → "a "   push("#b") → "##b"   push("c###d") → "c", found
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._withheld = ""
        self._hidden: list[bool] = []  # for each character that is withheld

    def push(self, chunk: str, hidden: bool = False) -> str:
        """The text that is certain after one more chunk."""
        text = self._withheld + chunk
        self._hidden += [hidden] * len(chunk)
        for i in range(len(text)):
            if text.startswith(self._stops, i):
                self.found = True
                return self._pass_on(text, i)
            if any(stop.startswith(text[i:]) for stop in self._stops):
                return self._pass_on(text, i)
        return self._pass_on(text, len(text))

    def flush(self) -> str:
        """The rest of the text, when no more comes."""
        text = self._withheld
        starts = [text.find(stop) for stop in self._stops if stop in text]
        self.found = self.found or bool(starts)
        return self._pass_on(text, min(starts, default=len(text)))

    def _pass_on(self, text: str, end: int) -> str:
        """What is not hidden of `text` up to `end`; the rest is withheld until a stop is found."""
        visible = "".join(
            c for c, hidden in zip(text[:end], self._hidden, strict=False) if not hidden
        )
        self._withheld = "" if self.found else text[end:]
        del self._hidden[:end]
        return visible


class TextStream(Iterator[str]):
    """An iterator over the continuation of a prompt, as text.

        text = TextStream(model, tokenizer, tokenizer.encode("Once upon a time"), stop="\\n\\n")
        for chunk in text:
            print(chunk, end="", flush=True)
        print(text.reason, len(text.ids))

    ids     list of the new tokens so far, those of a stop string and the one that ended the text
            included
    unused  names of options that are set, and do nothing at temperature 0
    reason  None until the text has ended, then why: "length", "eos", "context" or "stop"; see
            scheduler.Event
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        ids: Any,
        stop: str | Sequence[str] = (),
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        eos_token_id: Eos = "config",
    ) -> None:
        """
        model      the model
        tokenizer  decodes the tokens; only ids that it knows, or that end a text, are generated
        ids        the prompt: integers [T] or [1, T], T ≤ n_positions; an empty one begins after
                   config.start_token_id
        stop       a string, or several: the text ends before the first one that comes. Special
                   tokens, which have no text otherwise, count with theirs (Hugging Face's
                   stop_strings)

        The other options are those of GPTModel.generate. Raises InputError for a wrong argument;
        iterating raises CheckpointError where the model's logits are not finite.
        """
        check_model("model", model)
        check_tokenizer("tokenizer", tokenizer)
        vocab_size = tokenizer.vocab_size  # the model's may be larger, and those ids have no text
        params = SamplingParams(
            max_new_tokens, temperature, top_k, top_p, min_p, seed, eos_token_id, vocab_size
        )
        self.unused = params.unused
        self.ids: list[int] = []
        self.reason: Finish | None = None
        stops = checked_strings("stop", stop)
        self._has_stops = bool(stops)
        self._stops = StopFilter(stops)
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream_decoder()
        self._scheduler, (self._request,) = schedule(
            model, [checked_single_prompt(model, ids)], params
        )
        self._chunks = self._run()

    def __reduce__(self) -> NoReturn:
        raise InputError("text: is being generated, and cannot be copied or pickled")

    def __next__(self) -> str:
        """One chunk for each token, empty while a character or a stop string is incomplete; then
        the rest."""
        return next(self._chunks)

    def close(self) -> None:
        """Stop generating. No more chunks come, and `reason` stays None."""
        self._chunks.close()

    def _run(self) -> Generator[str, None, None]:
        finished: Finish | None = None
        for event in events(self._scheduler):
            finished = event.finished
            if event.token_id is None:
                break
            self.ids.append(event.token_id)
            yield self._stops.push(*self._text_of(event.token_id))
            if self._stops.found:
                self._scheduler.cancel(self._request, "stop")
                break
        rest = ""
        if not self._stops.found:
            rest = self._stops.push(self._decoder.flush()) + self._stops.flush()
        self.reason = "stop" if self._stops.found and finished != "eos" else finished
        yield rest

    def _text_of(self, token_id: int) -> tuple[str, bool]:
        """The text that a token adds, and whether it is hidden: that of a special token."""
        if token_id >= self._tokenizer.vocab_size:  # an end that the tokenizer does not know
            return "", False
        if self._has_stops and not self._tokenizer.decode([token_id]):
            return self._tokenizer.decode([token_id], skip_special_tokens=False), True
        return self._decoder.push(token_id), False
