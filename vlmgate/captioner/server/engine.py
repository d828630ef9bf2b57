"""Caption with a model behind an OpenAI-compatible chat server.

Start with `EndpointCaptioner`. A reading is K texts or none: what a server leaves out is asked for again, and where it
cannot be had the picture fails and goes to a person. Where a server dies, any of the pictures that it had may be to
blame: once it is back each of them is asked alone, and one that it dies of then goes to a person. A picture that never
came to the server is to blame for nothing: it is asked again once the server is back.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import queue
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from vlmgate.captioner.protocol import ServerDiedError
from vlmgate.captioner.server.client import DiedError, RefusedError, Server, UnansweredError
from vlmgate.captioner.server.messages import captions_of, data_url, describe_pictures
from vlmgate.captioner.server.probe import FEW_RETRIES, TRIAL_TOKENS, Probe
from vlmgate.captioner.server.structured import allowed_of, more_tokens, options_of
from vlmgate.captioner.streams import (
    COLOUR_QUESTION,
    COLOURS,
    Stream,
    colour_picture,
    seeds,
    trial_picture,
    views_of,
)
from vlmgate.config import ModelConfig, SamplingConfig
from vlmgate.data import MOST_DEATHS, Caption, ModelInfo, Picture, Sampled
from vlmgate.errors import EndpointError, ModelError

logger = logging.getLogger(__name__)

Done = Callable[[tuple[Picture, Sampled | Exception]], None]  # takes what came of a picture
Outcome = BaseException | None  # why a picture was not read; None: it was

TURNS = 3  # in which a picture is asked that does not come to the server
EMPTY_ANSWERS = 3  # that a request for one sample may get
_OF_THE_IMAGE = frozenset({400, 413, 415, 422})  # refusals that another image may escape


class EndpointCaptioner:
    """A `Captioner` over HTTP."""

    def __init__(self, model: ModelConfig, sampling: SamplingConfig) -> None:
        """Ask the server what it can do; raises `EndpointError` in one line where that is not enough."""
        assert model.endpoint is not None
        self._model, self._sampling, self._url = model.model, sampling, model.endpoint.url
        self._server = Server(model.endpoint)
        self._max_side = model.endpoint.max_side
        self._trial = self._asked(data_url(trial_picture().rgb, self._max_side), sampling.prompt)
        most = sampling.num_samples // sampling.views
        colours = {c: self._asked(data_url(colour_picture(c), self._max_side), COLOUR_QUESTION) for c in COLOURS}
        probe = Probe(self._server, self._trial, sampling, most, colours, trust_vision=model.trust_vision)
        self._can = self._server.run(probe.run())
        self._info = self._describe(most)
        logger.info("the server can: %s", self._can)

    @property
    def info(self) -> ModelInfo:
        """What it is and what it can do."""
        return self._info

    def read(self, pictures: Sequence[Picture]) -> list[Sampled]:
        """Return what is sampled of each of B pictures, in the order given.

        Raises `ModelError` where one of them cannot be read, `EndpointError` where the server reads not even a test
        image.
        """
        found: dict[int, Sampled | Exception] = {id(one): outcome for one, outcome in self.read_each(pictures)}
        outcomes = [found[id(picture)] for picture in pictures]
        if failures := [one for one in outcomes if isinstance(one, Exception)]:
            raise failures[0]
        return [one for one in outcomes if isinstance(one, Sampled)]

    def read_each(
        self, pictures: Sequence[Picture], deaths: Sequence[int] = ()
    ) -> Generator[tuple[Picture, Sampled | Exception]]:
        """Yield each picture as soon as it is done, with what was sampled of it.

        Those that cannot be read come last, each with its error, after a test image where the server was in doubt.
        Raises `EndpointError` where that is not read either. `deaths` says how often a server died while it had each
        picture. One that it dies of comes at once, with a `ServerDiedError`, so that this is remembered whatever ends
        the run; and once more, when it was asked alone.
        """
        done: queue.SimpleQueue[tuple[Picture, Sampled | Exception] | None] = queue.SimpleQueue()
        asking = self._server.start(self._read_all(pictures, deaths or [0] * len(pictures), done.put))
        asking.add_done_callback(lambda _: done.put(None))
        try:
            while (one := done.get()) is not None:
                yield one
            yield from asking.result()
        finally:
            asking.cancel()

    @property
    def at_once(self) -> int:
        """How many images keep the server busy while a batch comes to its end."""
        return 2 * self._server.config.concurrency

    def with_samples(self, num_samples: int) -> EndpointCaptioner:
        """Return a captioner that draws another number of samples with the same server; asks nothing."""
        other = copy.copy(self)
        other._sampling = replace(self._sampling, num_samples=num_samples)
        return other

    def look(self, pictures: Sequence[Picture]) -> list[tuple[float, ...] | None]:
        """Return None for each picture: a server shows no vision features."""
        return [None] * len(pictures)

    # --- pictures ---

    async def _read_all(
        self, pictures: Sequence[Picture], deaths: Sequence[int], done: Done
    ) -> list[tuple[Picture, Exception]]:
        """Hand every reading to `done`; return the other pictures with their errors, after a check of the server."""
        fresh = [picture for picture, died in zip(pictures, deaths, strict=True) if not died]
        suspects = [(picture, died) for picture, died in zip(pictures, deaths, strict=True) if died]
        at_once = asyncio.Semaphore(self._server.config.concurrency)  # no more pictures in memory than under way

        async def read(picture: Picture, died: int = 0) -> None:
            try:
                done((picture, await self._read_one(picture, at_once)))
            except DiedError as error:
                logger.warning("the server died while it had %s: %s", picture.file.file_name, error)
                done((picture, ServerDiedError(died + 1)))
                raise

        outcomes: list[tuple[Picture, Outcome]] = []
        died, waiting = bool(suspects), fresh
        for turn in range(TURNS):
            asked = [*zip(waiting, await asyncio.gather(*map(read, waiting), return_exceptions=True), strict=True)]
            suspects += [(picture, 1) for picture, outcome in asked if isinstance(outcome, DiedError)]
            died = died or bool(suspects)
            outcomes += [(picture, await self._alone(picture, number, read)) for picture, number in suspects]
            again = [turn + 1 < TURNS and _says_nothing_of_it(outcome, died=died) for _, outcome in asked]
            outcomes += [one for one, more in zip(asked, again, strict=True) if not more]
            waiting, suspects = [picture for (picture, _), more in zip(asked, again, strict=True) if more], []
            if not waiting:
                break
            logger.warning("%d images did not come to the server and are asked for again", len(waiting))
            await self._check_server(None if died else FEW_RETRIES)
        return await self._failed(outcomes)

    async def _failed(self, outcomes: Sequence[tuple[Picture, Outcome]]) -> list[tuple[Picture, Exception]]:
        """Return the pictures that were not read, with their errors, after a check of the server where in doubt."""
        failed: list[tuple[Picture, Exception]] = []
        doubtful: Exception | None = None
        for picture, outcome in outcomes:
            if isinstance(outcome, DiedError):  # that was handed over
                continue
            if isinstance(outcome, RefusedError | UnansweredError):
                logger.warning("%s was not read: %s", picture.file.file_name, outcome)
                failed.append((picture, ModelError(f"the server gave no reading: {outcome}")))
                of_the_image = isinstance(outcome, RefusedError) and outcome.status in _OF_THE_IMAGE
                doubtful = doubtful if of_the_image else outcome
            elif isinstance(outcome, Exception):
                failed.append((picture, outcome))
            elif outcome is not None:  # cancelled
                raise outcome
        if doubtful is not None:
            await self._check_server(FEW_RETRIES)
            logger.warning("the server reads a test image, so the images are to blame (%s)", doubtful)
        return failed

    async def _alone(
        self, picture: Picture, died: int, read: Callable[[Picture, int], Awaitable[None]]
    ) -> Exception | None:
        """Ask a picture that a server died of, once that is back and has no other; return why it was not read.

        Raises `EndpointError` where the server does not come back. One that it died of too often is not asked.
        """
        if died >= MOST_DEATHS:
            return ServerDiedError(died)
        for turn in range(TURNS):
            await self._check_server(None)
            try:
                await read(picture, died)
            except Exception as error:
                if turn + 1 == TURNS or not _says_nothing_of_it(error, died=True):
                    return error
            else:
                break
        return None

    async def _reads_trial(self) -> bool | None:
        """Say whether the server answers a request for the test image, now; None where it is too busy to be sure.

        Whoever asks us to come back later is there.
        """
        try:
            await self._server.complete(self._trial_request, retries=0)
        except RefusedError:  # it is there
            return True
        except UnansweredError as error:
            return None if error.unclear else error.busy
        return True

    @property
    def _trial_request(self) -> dict[str, Any]:
        return {**self._trial, **self._options(TRIAL_TOKENS), **self._seeded(0)}

    async def _check_server(self, retries: int | None) -> None:
        """Raise `EndpointError` where a test image is not read either, for then no image is to blame.

        Without `retries`, the server is known to be away, and is waited for as long as for any answer.
        """
        try:
            await self._server.complete(self._trial_request, retries=retries)
        except (RefusedError, UnansweredError) as error:
            raise EndpointError(
                f"{self._url}: the server is gone or refuses everything: {error}. What was read is safe; the same "
                "command resumes once it is back, at this or another URL."
            ) from None

    async def _read_one(self, picture: Picture, at_once: asyncio.Semaphore) -> Sampled:
        sampling = self._sampling
        async with at_once:
            urls = await asyncio.to_thread(self._urls, picture)
            works = [self._texts(picture, urls, sampling.prompt, "captions")]
            if (asked := sampling.question_prompt) is not None:
                works.append(self._texts(picture, urls, asked, "answers"))
            captions, *answers = await _all_or_nothing(works)
        each = sampling.num_samples // sampling.views
        views = tuple(k // each for k in range(sampling.num_samples)) if sampling.views > 1 else None
        return Sampled(captions, answers[0] if answers else None, None, views)

    def _urls(self, picture: Picture) -> list[str]:
        sampling = self._sampling
        views = views_of(picture, sampling.views, sampling.view_noise, sampling.seed)
        return [data_url(view, self._max_side) for view in views]

    async def _texts(self, picture: Picture, urls: Sequence[str], prompt: str, use: Stream) -> tuple[Caption, ...]:
        """Return K texts, those of one view after those of another."""
        sampling, file = self._sampling, picture.file
        numbers = seeds(sampling.seed, file.sha256, file.page, sampling.num_samples, use)
        most = sampling.max_answer_tokens if use == "answers" else sampling.max_new_tokens
        each = len(numbers) // len(urls)
        draw = self._answers if use == "answers" and self._can.structured else self._samples
        works = [
            draw({**self._asked(url, prompt), **self._options(most)}, numbers[v * each : (v + 1) * each])
            for v, url in enumerate(urls)
        ]
        return tuple(text for texts in await _all_or_nothing(works) for text in texts)

    async def _answers(self, options: dict[str, Any], numbers: Sequence[int]) -> list[Caption]:
        """Return one answer for each seed, of the choices alone; where the server refuses that, as it likes.

        A server that has stopped to take structured output is no reason to blame an image. What it says freely counts
        as any answer does, so that nothing passes that would not without.
        """
        way = self._can.structured
        limit = {self._can.tokens: options[self._can.tokens] + more_tokens(way)}
        try:
            return await self._samples({**options, **limit, **options_of(way, allowed_of(self._sampling))}, numbers)
        except (RefusedError, UnansweredError) as error:
            found = await self._samples(options, numbers)
            logger.warning("an answer was not kept to the choices (%s)", error)
            return found

    async def _samples(self, options: dict[str, Any], numbers: Sequence[int]) -> list[Caption]:
        """Return one text for each seed; what one request for all leaves out is asked for one by one."""
        found: list[Caption] = []
        if self._can.n and len(numbers) > 1:
            reply = await self._complete({**options, **self._seeded(numbers[0]), "n": len(numbers)})
            found = captions_of(reply, len(numbers))
            if len(found) < len(numbers):
                logger.warning("%d of %d samples came; the others are asked for singly", len(found), len(numbers))
        missing = numbers[len(found) :]
        return found + await _all_or_nothing([self._sample(options, number) for number in missing])

    async def _sample(self, options: dict[str, Any], number: int) -> Caption:
        for _ in range(EMPTY_ANSWERS):
            found = captions_of(await self._complete({**options, **self._seeded(number)}), 1)
            if found:
                return found[0]
        raise UnansweredError("it answers without a text, so that the samples stay incomplete")

    # --- requests ---

    async def _complete(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request about a picture, of which the server may die."""
        return await self._server.complete(options, alive=self._reads_trial)

    def _asked(self, url: str, prompt: str) -> dict[str, Any]:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        return {"model": self._model, "messages": [{"role": "user", "content": content}]}

    def _options(self, tokens: int) -> dict[str, Any]:
        shape = {"temperature": self._sampling.temperature, "top_p": self._sampling.top_p, self._can.tokens: tokens}
        return {**shape, **self._can.extra} | ({"logprobs": True} if self._can.logprobs else {})

    def _seeded(self, number: int) -> dict[str, Any]:
        return {"seed": number} if self._can.seed else {}

    def _describe(self, samples: int) -> ModelInfo:
        return ModelInfo(
            model=self._model,
            revision=None,
            architecture="unknown",
            num_parameters=None,
            device="server",
            dtype="unknown",
            image_processor="of the server",
            route="n samples a request" if self._can.n else "a request a sample",
            versions=self._server.versions,
            server={"url": self._url, "images": describe_pictures(self._max_side)} | self._can.in_words(samples),
            vision=f"asked whether a picture is red or green: {self._can.sight.in_words()}",
            warnings=self._can.warnings(),
        )


def _says_nothing_of_it(outcome: Outcome, *, died: bool) -> bool:
    """Say whether a picture is still to be asked: it did not come to the server, or to one that came back just then.

    `died` says that the server died meanwhile: what is busy then is the proxy before it, or a server that begins.
    """
    return isinstance(outcome, UnansweredError) and (not outcome.sent or (died and outcome.busy))


async def _all_or_nothing(works: Sequence[Any]) -> list[Any]:
    """Do all at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
