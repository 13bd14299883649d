"""What all Checkpoints do, whatever holds the marks. An adapter's test class gives the `checkpoints` fixture."""

from __future__ import annotations

import asyncio

from sources.checkpoints import Checkpoints


class CheckpointsSuite:
    """The promises of `sources.checkpoints.Checkpoints`."""

    async def test_a_written_mark_is_read_and_an_unknown_key_is_left_out(self, checkpoints: Checkpoints):
        await checkpoints.write("uid-1", {"a": "1", "b": "2"})
        assert await checkpoints.read("uid-1", ["a", "b", "c"]) == {"a": "1", "b": "2"}

    async def test_reading_nothing_gives_nothing(self, checkpoints: Checkpoints):
        assert await checkpoints.read("uid-1", []) == {}
        await checkpoints.write("uid-1", {})
        assert await checkpoints.sources() == []

    async def test_a_later_write_replaces_a_mark_and_leaves_the_others(self, checkpoints: Checkpoints):
        await checkpoints.write("uid-1", {"a": "1", "b": "2"})
        await checkpoints.write("uid-1", {"a": "3"})
        assert await checkpoints.read("uid-1", ["a", "b"]) == {"a": "3", "b": "2"}

    async def test_none_removes_a_mark_and_removing_an_unknown_one_is_fine(self, checkpoints: Checkpoints):
        await checkpoints.write("uid-1", {"a": "1", "b": "2"})
        await checkpoints.write("uid-1", {"a": None, "z": None})
        assert await checkpoints.read("uid-1", ["a", "b"]) == {"b": "2"}

    async def test_sources_do_not_see_each_others_marks(self, checkpoints: Checkpoints):
        await checkpoints.write("uid-1", {"a": "1"})
        await checkpoints.write("uid-2", {"a": "2"})
        assert await checkpoints.read("uid-1", ["a"]) == {"a": "1"}
        assert await checkpoints.read("uid-2", ["a"]) == {"a": "2"}

    async def test_dropping_a_source_forgets_its_marks_and_no_others(self, checkpoints: Checkpoints):
        await checkpoints.write("uid-1", {"a": "1"})
        await checkpoints.write("uid-2", {"a": "2"})
        await checkpoints.drop("uid-1")
        await checkpoints.drop("uid-3")
        assert await checkpoints.sources() == ["uid-2"]
        assert await checkpoints.read("uid-1", ["a"]) == {}

    async def test_pages_give_every_key_once_in_the_order_of_code_points(self, checkpoints: Checkpoints):
        keys = sorted(["", "a", "A", "a/b", "ä", "\N{SNOWMAN}", "\N{PILE OF POO}", "\uffee", *map(str, range(20))])
        await checkpoints.write("uid-1", dict.fromkeys(keys, "1"))
        paged, after = [], ""
        while page := await checkpoints.page("uid-1", after, 4):
            assert len(page) <= 4
            paged += page
            after = page[-1]
        assert paged == keys[1:]  # the empty key sorts before everything, also before the start

    async def test_many_keys_are_read_at_once(self, checkpoints: Checkpoints):
        marks = {f"key-{number}": str(number) for number in range(2500)}
        await checkpoints.write("uid-1", marks)
        assert await checkpoints.read("uid-1", marks) == marks

    async def test_writes_at_the_same_time_are_all_kept(self, checkpoints: Checkpoints):
        await asyncio.gather(*(checkpoints.write("uid-1", {f"k{number}": "v"}) for number in range(200)))
        assert len(await checkpoints.page("uid-1", "", 1000)) == 200

    async def test_writes_of_one_key_take_effect_in_order(self, checkpoints: Checkpoints):
        await asyncio.gather(*(checkpoints.write("uid-1", {"a": str(number)}) for number in range(50)))
        assert await checkpoints.read("uid-1", ["a"]) == {"a": "49"}
