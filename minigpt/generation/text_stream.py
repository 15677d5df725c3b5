"""Generation as text: new tokens through the tokenizer's decoder, up to a stop string."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

from ..arguments import check_model, check_tokenizer, checked_strings
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


class StopFilter:
    """Passes text on, up to the start of the first stop string.

    It withholds text that could become a stop string. The result does not depend on how the text
    is cut into chunks: while an earlier start may still complete, a complete stop string waits.

        stops ["###"]:  push("a #") → "a "   push("#b") → "##b"   push("c###d") → "c", found
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._withheld = ""

    def push(self, chunk: str) -> str:
        """The text that is certain after one more chunk."""
        text = self._withheld + chunk
        for i in range(len(text)):
            if text.startswith(self._stops, i):
                self.found = True
                self._withheld = ""
                return text[:i]
            if any(stop.startswith(text[i:]) for stop in self._stops):
                self._withheld = text[i:]
                return text[:i]
        self._withheld = ""
        return text

    def flush(self) -> str:
        """The rest of the text, when no more comes."""
        text, self._withheld = self._withheld, ""
        starts = [text.find(stop) for stop in self._stops if stop in text]
        self.found = self.found or bool(starts)
        return text[: min(starts, default=None)]


class TextStream(Iterator[str]):
    """An iterator over the continuation of a prompt, as text.

        text = TextStream(model, tokenizer, tokenizer.encode("Once upon a time"), stop="\\n\\n")
        for chunk in text:
            print(chunk, end="", flush=True)
        print(text.reason, len(text.ids))

    ids     list of the new tokens so far, those of a stop string and the end-of-text token included
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
        tokenizer  decodes the tokens; only ids that it knows are generated
        ids        the prompt: integers [T] or [1, T], 1 ≤ T ≤ n_positions
        stop       a string, or several: the text ends before the first one that comes

        The other options are those of GPTModel.generate. Raises InputError for a wrong argument;
        iterating raises CheckpointError where the model's logits are not finite.
        """
        check_model("model", model)
        check_tokenizer("tokenizer", tokenizer)
        vocab_size = tokenizer.vocab_size  # the model's may be larger, and those ids have no text
        params = SamplingParams(
            max_new_tokens, temperature, top_k, top_p, min_p, seed, eos_token_id, vocab_size
        )
        self.ids: list[int] = []
        self.reason: Finish | None = None
        self._stops = StopFilter(checked_strings("stop", stop))
        self._decoder = tokenizer.stream_decoder()
        self._scheduler, (self._request,) = schedule(
            model, [checked_single_prompt(model, ids)], params
        )
        self._chunks = self._run()

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
            if finished == "eos":  # the end-of-text token has no text
                break
            yield self._stops.push(self._decoder.push(event.token_id))
            if self._stops.found:
                self._scheduler.cancel(self._request, "stop")
                break
        rest = ""
        if not self._stops.found:
            rest = self._stops.push(self._decoder.flush()) + self._stops.flush()
        self.reason = "stop" if self._stops.found else finished
        yield rest
