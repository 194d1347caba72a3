"""Answers of engines on their way to clients, with what the engine gets wrong put right. Pure: bytes in, bytes out.

One :class:`Mender` an answer. What an engine is known to do is in :mod:`autolaunch.daemon.gateway.manners`; what its
refusals say is read in :mod:`autolaunch.daemon.gateway.refusals`. The rest holds for all of them and goes by what is
in the bytes, so that an engine of another version, or one that somebody else installed, is put right too.

A stream is passed on event by event, as soon as the event is whole. An event that needs no change is looked at by
searches of bytes alone. Its fields stand as the engine wrote them: reasoning under either of its two names, tool
calls, usage, timings. Nothing is made up: a count or a reason that the engine does not tell stays untold.

Comments (``: keepalive``) are part of the format and are what it recommends against proxies that end silent
connections (https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes): they pass, but for those
that keep nothing alive (:attr:`autolaunch.daemon.gateway.manners.Manners.idle_comment`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from autolaunch.daemon.gateway import heads, refusals, streams
from autolaunch.daemon.gateway.documents import Dialect, error_document, error_event
from autolaunch.daemon.gateway.manners import of
from selector.facts import EngineName

#: The longest event that is waited for to its end. A longer one is passed on in pieces, as it is.
EVENT_BYTES = 2**20
#: How many kinds of events are learnt in one stream: one whose events all differ is looked through, each of them.
KINDS = 16
#: What a client is told when its answer ends before it is finished.
BROKE_OFF = "the engine ended this answer before it was finished"

_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class Mender:
    """One answer of an engine. First :meth:`head`; then :meth:`whole`, or :meth:`feed` and one of its ends.

    Args:
        engine: what answered; ``None``: the gateway of another host.
        asked: the model's name in the client's request, which the answer is to call itself.
        served: the engine's own name for it.
        streamed: whether the client asked for a stream.
        request: the request's body, looked at only when the engine says that it failed: some do on wrong requests.
    """

    # Set for those answers only that change them.
    _opaque = False
    _held = b""
    _spilling = False
    _usual: streams.Usual | None = None
    _to_learn = KINDS
    _renamed: tuple[tuple[bytes, bytes], ...] = ()
    _named = False
    _last = b""
    _ending = False
    _first_usage = b""
    _last_usage = b""
    _timings = b""
    _counted: tuple[int, int] | None = None
    _tokens = 0
    _failed = False
    _finished = False

    def __init__(
        self,
        *,
        engine: EngineName | None,
        asked: str,
        served: str,
        dialect: Dialect,
        streamed: bool,
        request: bytes | None = None,
    ) -> None:
        self._manners = of(engine)
        self._asked = asked
        self._served = served
        self._dialect = dialect
        self._streamed = streamed
        self._request = request
        self._events = streamed
        self._pieces = streams.PIECES.get(dialect)

    # --- what was learnt ----------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether the answer is to go through ``feed``: known after ``head``. Else it is read whole, then mended."""
        return self._events

    @property
    def usage(self) -> tuple[int | None, int | None]:
        """Tokens of the prompt and of the answer, as the engine counted them. ``None`` where it told none."""
        if self._counted is not None:
            return self._counted
        first, last = self._first_usage, self._last_usage
        if not last:
            timed = streams.TIMINGS.search(self._timings)
            if timed is None:
                return None, None
            kept, read, written = map(int, timed.groups())
            return kept + read, written
        told = streams.number(streams.ASKED_TOKENS, last)
        return (
            streams.number(streams.ASKED_TOKENS, first) if told is None else told,
            streams.number(streams.GIVEN_TOKENS, last),
        )

    @property
    def tokens_seen(self) -> int:
        """Pieces of the answer that have come: no more than its tokens, for an engine may send several in one."""
        return self._tokens

    @property
    def finished(self) -> bool:
        """Whether the answer has its end: nothing may follow."""
        return self._finished

    @property
    def failed(self) -> bool:
        """Whether the stream has told of an error."""
        return self._failed

    # --- heads and whole answers --------------------------------------------------------------------

    def head(self, status: int, headers: heads.Headers) -> tuple[int, heads.Headers]:
        """The status and headers for the client. ``whole`` may put the status right once more."""
        kept, kind, self._opaque = heads.passed_on(headers)
        events = kind == b"text/event-stream"
        self._events = self._streamed and events and status < 400
        if self._events:
            kept = [(name, value) for name, value in kept if name.lower() != b"cache-control"]
            kept += [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        elif self._dialect != "other" or status >= 400 or not kind:
            kept.append((b"content-type", b"application/json"))
        else:
            kept.append((b"content-type", kind))
        return refusals.status_of_head(status), kept

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """An answer that is not streamed. ``status`` is the engine's own."""
        if self._opaque:
            return refusals.status_of_head(status), body
        if status >= 300:
            return self._refusal(status, body)
        if self._dialect in ("models", "other"):
            return status, body
        if self._dialect in ("chat", "completions") and (counted := streams.counted(body, self._asked)) is not None:
            self._counted = counted
            return status, body
        if self._dialect == "responses" and not body.lstrip().startswith(b"{"):
            body = streams.last_response(body) or body
        try:
            skimmed = streams.skim(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 502, error_document(
                self._dialect, 502, "the engine's answer is no JSON document", code="engine_error"
            )
        if skimmed.error is not None and not bytes(skimmed.choices) and self._dialect != "responses":
            return self._refusal(status, body)
        if self._dialect == "responses" and skimmed.error is not None:
            body = _encode(self._failed_response(_decode(body)))
        self._note_usage(body)
        self._learn_name(body)
        return status, self._rename(body)

    def _refusal(self, status: int, body: bytes) -> tuple[int, bytes]:
        refusal = self._read(status, body)
        if refusal.status >= 500 and self._request is not None:
            fault = refusals.fault_of(self._dialect, self._request)
            if fault is not None:
                refusal = refusals.Refusal(status=400, message=fault.message, code="invalid_request", param=fault.param)
        return refusal.status, error_document(
            self._dialect, refusal.status, refusal.message, code=refusal.code, param=refusal.param
        )

    # --- streams ------------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bytes:
        """What is to be passed on of ``chunk`` and of what was held back before it: every event that is whole."""
        if self._usual is not None and not self._held:
            piece = self._usual.piece(chunk)
            if piece is not None:
                self._tokens += 1
                return self._usual.told(chunk, piece)
        if self._opaque or self._finished:
            return chunk if self._opaque else b""  # an end is an end: a second [DONE] would be one too many
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if b"\r" in chunk:
            # A pair may be cut in two: the first half waits.
            if chunk.endswith(b"\r"):
                chunk, self._held = chunk[:-1], b"\r"
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._spilling:
            return self._spill(chunk)
        cut = len(chunk) if chunk.endswith(b"\n\n") else chunk.rfind(b"\n\n") + 2
        if cut < 2:
            cut = 0
        half = chunk[cut:]
        self._held = half + self._held
        told = self._whole_events(chunk[:cut]) if cut else b""
        if len(half) <= EVENT_BYTES or self._finished:
            return told
        self._held = self._held[len(half) :]
        self._spilling, self._usual = True, None
        return told + self._spill(half)

    def _whole_events(self, events: bytes) -> bytes:
        told = self._block(events)
        self._usual = None
        if self._to_learn and self._pieces is not None and not self._finished:
            self._to_learn -= 1
            self._usual = streams.usual(self._pieces, events, told)
        return told

    def _spill(self, chunk: bytes) -> bytes:
        """The rest of an event that is too long to be waited for."""
        end = chunk.find(b"\n\n")
        if end < 0:
            if chunk.endswith(b"\n"):
                chunk, self._held = chunk[:-1], b"\n" + self._held
            return chunk
        self._spilling = False
        held, self._held = self._held, b""
        return chunk[: end + 2] + self.feed(chunk[end + 2 :] + held)

    def _block(self, block: bytes) -> bytes:
        """Whole events, one or several, with ``\\n`` at the ends of their lines."""
        if (
            not block.startswith((b"data: {", b"event: "))
            or b"\n:" in block
            or b"\ndata:{" in block
            or b": data:" in block
        ):
            block = self._framed(block)
        if b"error" in block and streams.ERROR.search(block) is not None:
            block = b"".join(self._error(event) for event in streams.split(block))
        if not self._named and b'"model"' in block:
            self._learn_name(*streams.datas(block))
        if self._renamed:
            block = self._rename(block)
        if self._pieces is not None:
            if block.count(b"\n\n") == 1:
                self._tokens += self._pieces.search(block) is not None
            else:
                self._tokens += sum(self._pieces.search(event) is not None for event in streams.split(block))
        if b'"usage"' in block:
            self._note_usage(block)
        if not self._ending and (streams.FINISHED[0] in block or streams.FINISHED[1] in block):
            self._ending = True
        if self._ending and b'"timings"' in block:
            self._timings = block[block.rfind(b'"timings"') :][:2048]
        if b"[DONE]" in block:
            block = self._done(block)
        if self._dialect in streams.ENDS:
            block = self._named_events(block)
        return block

    def _named_events(self, block: bytes) -> bytes:
        """Events of the dialects whose streams end with an event of their own."""
        if streams.ENDS[self._dialect].search(block) is not None:
            self._finished = True
        if self._dialect == "responses":
            block = streams.with_names(block)
            self._last = block or self._last
        return block

    def _framed(self, block: bytes) -> bytes:
        """Blocks whose lines are not in the usual form: comments, a missing blank, a prefix that stands twice."""
        told = []
        for event in streams.split(block.removeprefix(b"\xef\xbb\xbf")):
            lines = []
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    value = line[5:].lstrip(b" ")
                    while value.startswith(b"data:"):
                        value = value[5:].lstrip(b" ")
                    lines.append(b"data: " + value)
                elif line.startswith(b":"):
                    if self._manners.idle_comment is None or self._manners.idle_comment.match(line) is None:
                        lines.append(line)
                elif line:
                    lines.append(line)
            if lines:
                told.append(b"\n".join(lines) + b"\n\n")
        return b"".join(told)

    def _error(self, event: bytes) -> bytes:
        """An error within a stream, in the dialect's form; any other event as it is."""
        data = b"\n".join(line[6:] for line in event.split(b"\n") if line.startswith(b"data: "))
        if not data:
            return event
        try:
            value = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Some write an error's text between quotes as it is, quotes and line ends included.
            value = {"error": data.decode(errors="replace")} if data.startswith(b'{"error"') else None
        if not isinstance(value, dict):
            return event
        error = value.get("error")
        typed = value.get("type")
        if self._dialect == "responses" and typed == "response.failed":
            return b"event: response.failed\ndata: " + _encode(self._failed_response(value)) + b"\n\n"
        if "error" not in (typed, value.get("object")) and (
            error is None or "choices" in value or self._dialect in streams.ENDS
        ):
            return event
        self._failed = True
        status = refusals.status_told(value) or 500
        refusal = self._read(status, data)
        if self._dialect in streams.ENDS:
            self._finished = True
        return error_event(self._dialect, refusal.status, refusal.message, code=refusal.code, sequence=self._sequence())

    def _failed_response(self, value: dict[str, Any]) -> dict[str, Any]:
        """A response that failed, and why, in words for clients."""
        response = value.get("response", value)
        if isinstance(response, dict) and isinstance(response.get("error"), dict):
            refusal = self._read(500, _encode({"error": response["error"]}))
            response["error"] = {"code": response["error"].get("code"), "message": refusal.message}
        return value

    def _read(self, status: int, body: bytes) -> refusals.Refusal:
        return refusals.read(self._manners, status, body, asked=self._asked, served=self._served, dialect=self._dialect)

    def _done(self, block: bytes) -> bytes:
        found = streams.DONE_LINE.search(block)
        if found is None:
            return block  # it is part of a text
        if self._dialect in streams.ENDS:
            return block[: found.start()] + block[found.end() :].lstrip(b"\n")  # no end of theirs
        self._finished = True
        return block[: found.start()] + streams.DONE

    def end(self) -> bytes:
        """What is missing when the engine has ended its answer in order."""
        if self._opaque or self._finished:
            return b""
        held, self._held = self._held, b""
        told = b""
        if self._spilling:
            return self._break(BROKE_OFF, "engine_error")
        if held.strip() and streams.is_complete(held):
            told = self._block(held.replace(b"\r", b"\n").rstrip(b"\n") + b"\n\n")
        if self.finished:
            return told
        if self._dialect in streams.ENDS or not (self._failed or self._ending):
            return told + self._break(BROKE_OFF, "engine_error")
        self._finished = True
        return told + streams.DONE

    def broken(self, message: str, code: str) -> bytes:
        """What ends a stream in order whose engine died, or whose connection broke: an error, and the end.

        Half an event that was held back is left out; one that was passed on is closed.
        """
        return b"" if self._opaque or self._finished else self._break(message, code)

    def _break(self, message: str, code: str) -> bytes:
        begun = b"\n\n" if self._spilling else b""
        self._held, self._spilling = b"", False
        self._finished = True
        if self._failed:
            return begun + (b"" if self._dialect in streams.ENDS else streams.DONE)
        self._failed = True
        event = error_event(self._dialect, 502, message, code=code, sequence=self._sequence())
        return begun + event + (b"" if self._dialect in streams.ENDS else streams.DONE)

    # --- parts --------------------------------------------------------------------------------------

    def _sequence(self) -> int:
        numbers = streams.SEQUENCE.findall(self._last)
        return int(numbers[-1]) + 1 if numbers else 0

    def _learn_name(self, *texts: bytes) -> None:
        """The first that names the model tells what is to be replaced in all that follow."""
        name = next(filter(None, map(streams.name_in, texts)), None)
        if name is None:
            return
        self._named = True
        found, wanted = _encode(name), _encode(self._asked)
        if found != wanted:
            # mlx-vlm 0.7.10 writes some events of one stream with blanks and some without.
            self._renamed = tuple((key + found, key + wanted) for key in streams.MODEL_KEYS)

    def _rename(self, block: bytes) -> bytes:
        for named, wanted in self._renamed:
            block = block.replace(named, wanted)
        return block

    def _note_usage(self, block: bytes) -> None:
        places = [found.start() for found in streams.USAGE.finditer(block)]
        if not places:
            return
        if not self._first_usage:
            self._first_usage = block[places[0] : places[0] + 2048]
        self._last_usage = block[places[-1] : places[-1] + 2048]
