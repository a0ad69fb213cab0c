"""Requests that come together are answered together, by one model, in time or not at all."""

import asyncio
import threading
import time

import pytest
from pydantic import BaseModel

from pipelines.serving.batching import INLINE_SECONDS, Batcher
from pipelines.serving.errors import Refusal
from pipelines.serving.servable import Reply


class Number(BaseModel):
    value: int


class Doubling:
    """Answers numbers with their doubles, and remembers batches and threads."""

    def __init__(self, seconds=0.0, rows=1000, name="a"):
        self.seconds, self.rows, self.name = seconds, rows, name
        self.batches, self.threads = [], []

    def answer(self, requests):
        self.batches.append([r.value for r in requests])
        self.threads.append(threading.current_thread().name)
        end = time.thread_time() + self.seconds * len(requests)
        while time.thread_time() < end:
            pass
        if any(r.value < 0 for r in requests):
            raise ValueError("negative")
        return [Reply({"double": 2 * r.value, "by": self.name}) for r in requests]


def batcher(model, **options):
    return Batcher(lambda: model, **({"queue": 100, "batch": 8, "target": 1.0, "patience": 60.0} | options))


async def ask(one, *values, seconds=5.0):
    replies = [one.submit(Number(value=v), seconds) for v in values]
    return await asyncio.gather(*replies, return_exceptions=True)


def test_what_comes_together_is_answered_together():
    async def scenario():
        model = Doubling()
        one = batcher(model)
        replies = await ask(one, *range(20))
        assert [r.content["double"] for r in replies] == [2 * i for i in range(20)]
        assert [len(batch) for batch in model.batches] == [8, 8, 4]
        alone = await ask(one, 7)
        assert alone[0].content["double"] == 14
        await one.close()

    asyncio.run(scenario())


def test_batches_shrink_to_the_target_and_leave_the_loop_alone():
    async def scenario():
        model = Doubling(seconds=0.01)
        one = batcher(model, target=0.03)
        await ask(one, 1)
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        await ask(one, *range(10))
        ticking.cancel()
        assert max(len(batch) for batch in model.batches) <= 3
        assert all(name.startswith("batch") for name in model.threads[1:]), "longer than a moment, so in a thread"
        assert INLINE_SECONDS < 0.01
        assert ticks >= 5
        await one.close()

    asyncio.run(scenario())


def test_the_rate_of_answers_is_that_of_busy_times():
    async def scenario():
        one = batcher(Doubling(seconds=0.002), target=0.004)
        await ask(one, 1)
        assert one.rate == 0.0
        await ask(one, *range(20))
        assert 0 < one.rate <= 1 / 0.002
        await one.close()

    asyncio.run(scenario())


def test_memory_bounds_what_is_computed_at_once():
    async def scenario():
        model = Doubling(rows=3)
        one = batcher(model)
        replies = await ask(one, *range(8))
        assert [r.content["double"] for r in replies] == [2 * i for i in range(8)]
        assert [len(batch) for batch in model.batches] == [3, 3, 2]
        await one.close()

    asyncio.run(scenario())


def test_one_too_many_is_refused_at_once():
    async def scenario():
        one = batcher(Doubling(), queue=3)
        replies = [one.submit(Number(value=i), 5.0) for i in range(3)]
        assert one.full
        with pytest.raises(Refusal) as refused:
            one.submit(Number(value=9), 5.0)
        assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "1")
        assert len(await asyncio.gather(*replies)) == 3
        assert not one.full
        await one.close()

    asyncio.run(scenario())


def test_no_more_are_taken_in_than_can_be_answered_in_time():
    async def scenario():
        one = batcher(Doubling(seconds=0.02), batch=1, patience=0.1)
        await ask(one, 0)
        replies = [one.submit(Number(value=i), 60.0) for i in range(15)]
        await asyncio.sleep(0)
        while not one.full:
            assert not replies[-1].done(), "the last of them has waited for longer than the patience"
            await asyncio.sleep(0.01)
        with pytest.raises(Refusal) as refused:
            one.submit(Number(value=9), 60.0)
        assert refused.value.status == 429
        assert len(await asyncio.gather(*replies)) == 15
        assert not one.full
        assert (await ask(one, 4))[0].content["double"] == 8
        await one.close()

    asyncio.run(scenario())


def test_what_is_too_late_is_not_computed():
    async def scenario():
        model = Doubling(seconds=0.05)
        one = batcher(model, batch=1)
        await ask(one, 0)
        first, late, patient = await asyncio.gather(
            *(one.submit(Number(value=i), s) for i, s in ((1, 5.0), (2, 0.01), (3, 5.0))), return_exceptions=True
        )
        assert (first.content["double"], patient.content["double"]) == (2, 6)
        assert (late.status, late.kind) == (503, "deadline")
        assert [2] not in model.batches
        await one.close()

    asyncio.run(scenario())


def test_a_bug_strikes_its_own_batch_alone():
    async def scenario():
        one = batcher(Doubling(), batch=2)
        replies = await ask(one, 1, -1, 2, 3)
        assert [type(r) for r in replies] == [ValueError, ValueError, Reply, Reply]
        await one.close()

    asyncio.run(scenario())


def test_a_batch_is_answered_by_one_model():
    async def scenario():
        models = [Doubling(name="a"), Doubling(name="b")]
        turn = iter([0, 1, 0, 1])
        one = Batcher(lambda: models[next(turn)], queue=100, batch=4, target=1.0, patience=60.0)
        replies = await ask(one, *range(16))
        names = [r.content["by"] for r in replies]
        assert names == ["a"] * 4 + ["b"] * 4 + ["a"] * 4 + ["b"] * 4
        await one.close()

    asyncio.run(scenario())


def test_without_a_model_everybody_is_told():
    async def scenario():
        def missing():
            raise Refusal(503, "unavailable", "no model")

        one = Batcher(missing, queue=10, batch=4, target=1.0, patience=60.0)
        assert [r.status for r in await ask(one, 1, 2)] == [503, 503]
        await one.close()

    asyncio.run(scenario())


def test_who_has_left_costs_nothing():
    async def scenario():
        model = Doubling()
        one = batcher(model)
        gone = one.submit(Number(value=1), 5.0)
        gone.cancel()
        replies = await ask(one, 2)
        assert replies[0].content["double"] == 4
        assert model.batches == [[2]]
        await one.close()

    asyncio.run(scenario())
