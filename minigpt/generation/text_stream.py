"""Generation as text: the tokens of generate.py through the tokenizer, up to a stop string."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal, Protocol

from ..errors import InputError, short_repr
from .generate import Eos, Model, resolve_eos, stream

# Why a text ended: max_new_tokens were made; the end-of-text token came; a stop string came;
# prompt and new tokens fill the model's n_positions.
Reason = Literal["length", "eos", "stop", "context"]


class Decoder(Protocol):
    """Turns tokens into text as they come; see `tokenizer.StreamDecoder`."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What TextStream needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def stream_decoder(self) -> Decoder: ...


class StopFilter:
    """Passes a text on in pieces, up to the place where the first of the stop strings begins.

    What could still become a stop string is held back. The result does not depend on where the
    pieces are cut: if one stop string is complete but an earlier start is still open, it waits.

        stops ["###"]:  push("a #") → "a "   push("#b") → "##b"   push("c###d") → "c", found
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that can be shown now that `piece` has come."""
        text = self._held + piece
        for i in range(len(text)):
            if text.startswith(self._stops, i):
                self.found = True
                self._held = ""
                return text[:i]
            if any(stop.startswith(text[i:]) for stop in self._stops):
                self._held = text[i:]
                return text[:i]
        self._held = ""
        return text

    def flush(self) -> str:
        """The rest, as no more text comes to complete what is held."""
        text, self._held = self._held, ""
        starts = [text.find(stop) for stop in self._stops if stop in text]
        self.found = self.found or bool(starts)
        return text[: min(starts, default=None)]


class TextStream(Iterator[str]):
    """Continues a prompt as text: an iterator over the pieces, and what is known beside them.

    ids     the tokens made so far, those of a stop string and the end-of-text token included
    reason  why it ended (see Reason); None before
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        ids: Any,
        stop: str | Sequence[str] = (),
        max_new_tokens: int = 64,
        eos_token_id: Eos = "config",
        **sampling: Any,
    ) -> None:
        """Arguments beside `stop` are those of `generate.stream`.

        stop  a text, or several, before the first of which the text ends

        Raises InputError for a wrong argument.
        """
        self.ids: list[int] = []
        self.reason: Reason | None = None
        self._tokens = stream(
            model,
            ids,
            max_new_tokens,
            vocab_size=tokenizer.vocab_size,  # the model's may be larger, and those have no text
            eos_token_id=eos_token_id,
            **sampling,
        )
        self._eos = resolve_eos(model.config, eos_token_id)
        self._max_new_tokens = max_new_tokens
        self._decoder = tokenizer.stream_decoder()
        self._stops = StopFilter(_checked_stops(stop))
        self._pieces = self._run()

    def __next__(self) -> str:
        """One piece per token, empty where its text is incomplete or held back; then the rest."""
        return next(self._pieces)

    def close(self) -> None:
        """Stops the work; no more pieces come, and `reason` stays None."""
        self._pieces.close()
        self._tokens.close()

    def _run(self) -> Generator[str, None, None]:
        for token in self._tokens:
            self.ids.append(token)
            if token == self._eos:
                break
            yield self._stops.push(self._decoder.push(token))
            if self._stops.found:
                break
        rest = ""
        if not self._stops.found:
            rest = self._stops.push(self._decoder.flush()) + self._stops.flush()
        self.reason = self._why()
        yield rest

    def _why(self) -> Reason:
        if self._stops.found:
            return "stop"
        if self.ids and self.ids[-1] == self._eos:
            return "eos"
        return "length" if len(self.ids) == self._max_new_tokens else "context"


def _checked_stops(stop: str | Sequence[str]) -> list[str]:
    if not isinstance(stop, str | list | tuple):
        raise InputError(f"stop: {type(stop).__name__}; must be a text or a list of texts")
    stops = [stop] if isinstance(stop, str) else list(stop)
    for item in stops:
        if not isinstance(item, str) or not item:
            raise InputError(f"stop {short_repr(item)}: must be a text of at least one character")
    return stops
