"""Find out what a model server can do by asking it, with one test image; start with `Probe`.

A server may refuse an option, or ignore it. Above all K samples must be K draws, for K copies of one text agree.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmgate.captioner.server.client import RefusedError, Server, UnansweredError
from vlmgate.captioner.server.messages import captions_of, thoughts_of
from vlmgate.captioner.server.structured import NONSENSE, WAYS, more_tokens, obeys
from vlmgate.captioner.server.structured import options_of as structured_options
from vlmgate.captioner.streams import COLOURS, Colour
from vlmgate.config import SamplingConfig
from vlmgate.errors import EndpointError, shorten

logger = logging.getLogger(__name__)

Options = Mapping[str, Any]

TRIAL_TOKENS = 16  # that a test may cost
HOT = 2.0  # temperature at which two draws of so many tokens are equal where nothing is drawn, and else hardly ever
FEW_RETRIES = 2  # a wrong URL should be reported within seconds
SEEDS = (11, 12, 13, 14)
DRAWS, RIGHT = len(SEEDS), 3  # answers about the colour of one picture, and how many of them must be right
_COLOUR = re.compile(r"\b(red|green)(?:d?ish)?\b")
UNTESTED = (
    "It could not be tested whether this server samples. If it does not, all readings of an image agree, and all "
    "images are accepted."
)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a server said when it was asked whether a picture is red or green."""

    right: Mapping[Colour, int]  # right answers about each picture, 0 to `DRAWS`
    said: str  # an answer that was wrong, in quotes, or why there was none; "" = all were right

    @property
    def proven(self) -> bool:
        """Say whether the pictures reach the model.

        One that never sees them and always gives the same answer fails; one that guesses passes once in ten times.
        """
        return min(self.right.values()) >= RIGHT

    def in_words(self) -> str:
        """Return it for people and the provenance."""
        figures = " and ".join(
            f"{right} of {DRAWS} answers about a {colour} one" for colour, right in self.right.items()
        )
        return f"{figures} were right" + ("" if self.proven else f"; it said {self.said}")


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """What a server does, as far as it showed."""

    tokens: str  # the name of the option that limits tokens
    extra: Options  # options beyond OpenAI's, by which nothing but temperature and top_p shapes the draw
    n: bool  # K independent samples come in one request
    seed: bool  # a seed is taken
    repeats: bool | None  # the same seed gives the same text; None = no seed is taken
    logprobs: bool  # log-probabilities come with the text
    drawn: bool  # samples were seen to differ; False = the test was not conclusive
    sight: Sight
    structured: str = ""  # how the server keeps to the choices, of `structured.WAYS`; "" = it may answer as it likes

    def in_words(self, samples: int) -> dict[str, str]:
        """Return it for people and the provenance."""
        same = "the same" if self.repeats else "another"
        seeds = f"one per image and sample; asked alone, the same seed gave {same} text"
        return {
            "samples": f"{samples} in one request" if self.n else "one a request",
            "independent": "seen to differ" if self.drawn else "could not be tested",
            "seeds": seeds if self.seed else "none is taken",
            "log_probabilities": "given" if self.logprobs else "not given",
            "other_sampling": _EXTRA_IN_WORDS[frozenset(self.extra)],
            "lacks": "random numbers of each image's own, vision features (novelty)",
            **({"structured_answers": f"nothing but the choices, by {self.structured}"} if self.structured else {}),
        }

    def warnings(self) -> tuple[str, ...]:
        """Return what people have to know before they believe this server, a line each."""
        blind = f"This server may not show its model the pictures: {self.sight.in_words()}. --trust-vision was given."
        return (*(() if self.drawn else (UNTESTED,)), *(() if self.sight.proven else (blind,)))


def extras(top_k: int) -> list[Options]:
    """Return the ways to say that temperature, top_p and top_k are all there is, the likeliest first.

    Servers have other defaults (llama.cpp: top_k 40 and min_p 0.05; transformers: top_k 50, or no sampling at all).
    Models that think aloud would spend every token on that.
    """
    plain = {"top_k": top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
    config = {"do_sample": True, "top_k": top_k, "repetition_penalty": 1.0}
    no_thoughts = {"chat_template_kwargs": {"enable_thinking": False}}
    return [plain | no_thoughts, plain, {"generation_config": json.dumps(config)}]


_EXTRA_IN_WORDS = {
    frozenset(one): f"{' and '.join(sorted(one))} sent and accepted, if not obeyed" for one in extras(0)
} | {frozenset(): "the server's own: it takes neither top_k nor a generation_config"}


class Probe:
    """The questions to a server, in the order in which `run` asks them."""

    def __init__(
        self,
        server: Server,
        base: Options,
        sampling: SamplingConfig,
        most: int,
        colours: Mapping[Colour, Options],
        *,
        trust_vision: bool = False,
    ) -> None:
        """Ask nothing yet.

        `base` holds model and messages; `most` is the number of samples of one picture, at least 1. `colours` are like
        `base`, with the question about the colour of a picture. With `trust_vision` a server that does not answer that
        is used all the same.
        """
        self.server, self.base, self.sampling, self.most = server, base, sampling, most
        self.colours, self.trust_vision = colours, trust_vision
        self.plain: Options = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        self.url = server.config.url
        self._trouble = ""  # why there was no answer about a colour

    async def run(self) -> ServerFeatures:
        """Ask all of it; raises `EndpointError` where the server cannot be used at all."""
        tokens, extra, taken, reply = await self._options_taken()
        if self.sampling.top_k and not extra:
            raise EndpointError(f"{self.url} takes no top_k; leave out --top-k.")
        captions = captions_of(reply, self.most)
        logprobs = "logprobs" in taken and bool(captions) and all(one.mean_logprob is not None for one in captions)
        several = "n" in taken and len(captions) == self.most
        seed = "seed" in taken
        shape = await self._shape_that_differs(tokens, extra, seed=seed)
        if several:
            several = await self._independent(shape or {**_hot(tokens), **extra}, seed=seed)
            if not several:
                logger.warning("%s: n samples were not seen to differ; each gets its own request", self.url)
        repeats = None if not seed else shape is not None and await self._repeats(shape)
        drawn = shape is not None or several
        sight = await self._sight(tokens, extra, seed=seed, several=several)
        structured = await self._structured(tokens, extra) if self.server.config.structured_answers else ""
        return ServerFeatures(tokens, extra, several, seed, repeats, logprobs, drawn, sight, structured)

    async def _options_taken(self) -> tuple[str, Options, Options, dict[str, Any]]:
        """Return the option that limits tokens, what is beyond OpenAI's, which others are taken, and an answer."""
        ways = extras(self.sampling.top_k)
        everything = {"seed": SEEDS[0], "logprobs": True} | ({"n": self.most} if self.most > 1 else {})
        answer = await self._answer({"max_tokens": TRIAL_TOKENS, **ways[0], **everything})
        if answer is not None:
            return "max_tokens", ways[0], everything, answer
        tokens, reply = await self._token_limit()
        for extra in (*ways, {}):
            if not extra or await self._answer({tokens: TRIAL_TOKENS, **extra}) is not None:
                break
        taken: dict[str, Any] = {}
        for name, value in everything.items():
            answer = await self._answer({tokens: TRIAL_TOKENS, **extra, **taken, name: value})
            if answer is not None:
                reply, taken[name] = answer, value
        return tokens, extra, taken, reply

    async def _ask(self, options: Options) -> dict[str, Any]:
        # Asked again where it is busy, or a passing trouble would be taken for an inability.
        return await self.server.complete({**self.base, **self.plain, **options}, retries=FEW_RETRIES)

    async def _answer(self, options: Options) -> dict[str, Any] | None:
        """Return the answer to a request with these options; None where it is refused or breaks the server."""
        try:
            return await self._ask(options)
        except (RefusedError, UnansweredError) as error:
            logger.info("not taken: %s (%s)", ", ".join(options), error)
            return None

    async def _token_limit(self) -> tuple[str, dict[str, Any]]:
        """Return the option that limits tokens, and an answer; raises `EndpointError` where there is none."""
        problem: Exception | None = None
        for name in ("max_tokens", "max_completion_tokens"):
            try:
                return name, await self._ask({name: TRIAL_TOKENS})
            except (RefusedError, UnansweredError) as error:
                problem = problem or error
                if isinstance(error, UnansweredError):
                    break
        raise EndpointError(await self._why_not(problem))

    async def _why_not(self, problem: Exception | None) -> str:
        text = f"{self.url}: the server gives no reading of a test image: {problem}."
        if isinstance(problem, UnansweredError):
            text += " See whether it runs, and whether the URL is right."
        unknown = isinstance(problem, RefusedError) and problem.status in (400, 404, 422)
        names = await self.server.models() if unknown else []
        if names and self.base["model"] not in names:
            more = ", …" if len(names) > 5 else ""
            text += f" It says that it has: {', '.join(names[:5])}{more}; name one with --model."
        return text

    async def _shape_that_differs(self, tokens: str, extra: Options, *, seed: bool) -> Options | None:
        """Return the options with which two samples were seen to differ; None where there was nothing to compare.

        Raises `EndpointError` where four samples are the same text; below temperature `HOT` that would prove nothing.
        """
        for temperature, most in ((HOT, TRIAL_TOKENS), (HOT, self.sampling.max_new_tokens), (1.0, TRIAL_TOKENS)):
            shape = {**_hot(tokens, temperature, most), **extra}
            texts: list[str] = []
            for number in SEEDS:
                texts.append(await self._text(shape | ({"seed": number} if seed else {})))
                if texts[-1] == "" or len(set(texts)) > 1:
                    break
            if "" in texts:
                continue
            if len(set(texts)) > 1:
                return shape
            if temperature == HOT:
                raise EndpointError(
                    f"{self.url}: the server does not sample: {len(SEEDS)} readings of a test image at temperature "
                    f"{HOT:g} are one and the same, so that all images would agree. Switch sampling on there."
                )
        return None

    async def _repeats(self, shape: Options) -> bool:
        """Say whether the same seed gives the same text, asked alone."""
        first, second = [await self._text({**shape, "seed": SEEDS[0]}) for _ in range(2)]
        return first == second != ""

    async def _independent(self, shape: Options, *, seed: bool) -> bool:
        """Say whether the samples of one request are draws, too."""
        reply = await self._answer({**shape, "n": self.most} | ({"seed": SEEDS[0]} if seed else {}))
        texts = thoughts_of(reply or {"choices": []})
        return len(texts) >= self.most and len(set(texts)) > 1

    async def _sight(self, tokens: str, extra: Options, *, seed: bool, several: bool) -> Sight:
        """Return what the server says of a red and of a green picture; raises `EndpointError` where that is wrong.

        A model that thinks aloud, or talks, gets as many tokens as a caption has, once a few were not enough.
        """
        for most in sorted({TRIAL_TOKENS, max(TRIAL_TOKENS, self.sampling.max_new_tokens)}):
            # Above temperature 1 a model that sees may talk nonsense.
            heat = {"temperature": min(self.sampling.temperature, 1.0)}
            shape: Options = {**heat, tokens: most, **extra}
            works = [self._colours_named(colour, shape, seed=seed, several=several) for colour in COLOURS]
            found = dict(zip(COLOURS, await asyncio.gather(*works), strict=True))
            wrong = [said for colour, texts in found.items() for said in texts if names_of(said) != {colour}]
            right = {colour: sum(names_of(said) == {colour} for said in texts) for colour, texts in found.items()}
            nothing = f"nothing within {most} tokens, of which a model that thinks first may need more"
            said = next((repr(shorten(said, 80)) for said in wrong if said.strip()), self._trouble or nothing)
            sight = Sight(right, said)
            if sight.proven:
                return sight
        if self.trust_vision:
            logger.warning("%s: the pictures may not reach the model (%s)", self.url, sight.in_words())
            return sight
        raise EndpointError(
            f"{self.url}: the server does not seem to show its model the pictures. Asked whether a picture is red or "
            f"green: {sight.in_words()}. See whether this model takes pictures. Where you know that it sees, "
            "--trust-vision insists."
        )

    async def _colours_named(self, colour: Colour, shape: Options, *, seed: bool, several: bool) -> list[str]:
        """Return the answers about a picture of one colour, fewer than `DRAWS` where the server gives fewer."""

        async def asked(more: Options, number: int, wanted: int) -> list[str]:
            seeded = {"seed": number} if seed else {}
            options = {**self.plain, **self.colours[colour], **shape, **more, **seeded}
            try:  # with patience, for a busy server must not pass for a blind one
                reply = await self.server.complete(options, alive=_is_up)
            except (RefusedError, UnansweredError) as error:
                self._trouble = str(error)
                return []
            return [one.text for one in captions_of(reply, wanted)]

        if several and len(together := await asked({"n": DRAWS}, SEEDS[0], DRAWS)) == DRAWS:
            return together
        singly = await asyncio.gather(*(asked({}, number, 1) for number in SEEDS))
        return [text for texts in singly for text in texts]

    async def _structured(self, tokens: str, extra: Options) -> str:
        """Return how the server keeps to choices; raises `EndpointError` where it does not in any way.

        It is asked to describe a picture, and allowed two words that mean nothing: a server that takes the option
        and does not obey describes the picture.
        """
        for way in WAYS:
            texts = []
            for words in NONSENSE:
                most = TRIAL_TOKENS + more_tokens(way)
                reply = await self._answer({tokens: most, **extra, **structured_options(way, words)})
                captions = captions_of(reply, 1) if reply is not None else []
                texts += [one.text for one in captions if obeys(way, one.text, words)]
                if not texts:
                    break
            if len(texts) == len(NONSENSE):
                return way
        raise EndpointError(
            f"{self.url}: the server does not keep to given answers, by none of {', '.join(WAYS)}; leave out "
            "--structured-answers, or start it with structured output."
        )

    async def _text(self, options: Options) -> str:
        """Return all that the first choice says, reasoning included; empty where there is none."""
        return next(iter(thoughts_of(await self._answer(options) or {"choices": []})), "")


async def _is_up() -> bool:
    return True  # it has just answered


def names_of(answer: str) -> set[str]:
    """Return which of the two colours an answer names.

    >>> names_of("The picture is Red."), sorted(names_of("red or green"))
    ({'red'}, ['green', 'red'])
    """
    return set(_COLOUR.findall(answer.casefold()))


def _hot(tokens: str, temperature: float = HOT, most: int = TRIAL_TOKENS) -> Options:
    return {"temperature": temperature, "top_p": 1.0, tokens: most}
