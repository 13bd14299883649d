"""A folder as a bucket: one event for each completed upload, told by inotify and made sure of by listing.

Flow: what happens in the folder becomes *candidates* (key and hint); candidates are looked at in batches in a thread; a
pure decision compares what was seen with the checkpoint; what is new is emitted by a bounded number of tasks, each of
which writes the checkpoint once the sink has accepted.

The folder is listed when it is first seen, when inotify's queue or our own overflows, when a folder appears within it,
and from time to time in case a file system tells nothing. A listing and the watches cannot miss a file between them:
a folder is watched before it is read. The mark of a key is the etag last told, so a file is told once, also across
restarts; a crash after the sink accepted and before the mark was written tells it again with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

import msgspec

from sources.files import FileVersion, FolderGone, Lister, Look, Selection, Sight, identity, look, missing
from sources.inotify import Happening, Inotify
from sources.objectstore import Bucket, StoredObject, object_created
from sources.port import Emit, Refused, SourceContext

__all__ = ["FolderSource", "Hint", "Verdict", "decide"]

_log: Final = logging.getLogger(__name__)

#: Events under way to the sink at once: enough to share the broker's group commits, few enough to bound what a crash
#: repeats.
MAX_EMITTING: Final = 16
#: Candidates that wait to be looked at; beyond that a listing finds them again.
MAX_CANDIDATES: Final = 4096
#: Folders that wait to be listed; beyond that everything is.
MAX_FOLDERS: Final = 1024
#: Files of which completeness cannot be told that wait for a second look; beyond that the next listing looks again.
MAX_UNSURE: Final = 1024
#: Candidates looked at in one go: one hop to the thread and one query each.
BATCH: Final = 256
#: A file that cannot be leased counts as complete when it has not changed for so long.
QUIET_S: Final = 2.0
#: Some file systems (network shares) report nothing: everything is listed again this often.
RELIST_S: Final = 600.0
#: Listing interval where the system's limit of inotify watches or instances is reached.
POLL_S: Final = 5.0
#: How often to look for a folder that is missing.
MISSING_S: Final = 1.0


class Hint(enum.IntEnum):
    """What made a key a candidate, from the weakest evidence of new content to the strongest."""

    TOUCHED = 1  # its metadata changed, or it left
    APPEARED = 2  # a new name, complete or not
    LISTED = 3
    WRITTEN = 4  # closed by a writer, or moved here


class Verdict(enum.Enum):
    """What to do about a candidate."""

    TELL = enum.auto()
    #: Same content under a new modification time: note it without telling.
    NOTE = enum.auto()
    FORGET = enum.auto()
    LOOK_LATER = enum.auto()
    COMPLAIN = enum.auto()
    NOTHING = enum.auto()


def decide(hint: Hint, sight: Sight, mark: str | None, *, quiet_s: float) -> Verdict:
    """What a candidate comes to. `mark` is the etag told last, `quiet_s` for how long the file is known not to change.

    A file that is being written needs no later look: its closing is another candidate.
    """
    if sight.look is Look.GONE:
        return Verdict.NOTHING if mark is None else Verdict.FORGET
    if sight.look is Look.UNREADABLE:
        return Verdict.COMPLAIN
    if sight.version is None or sight.version.etag == mark:
        return Verdict.NOTHING
    if hint is Hint.TOUCHED and mark is not None and sight.version.same_file_as(mark):
        return Verdict.NOTE
    if sight.look is Look.COMPLETE or hint is Hint.WRITTEN or quiet_s >= QUIET_S:
        return Verdict.TELL
    return Verdict.LOOK_LATER if hint is Hint.LISTED else Verdict.NOTHING


class _Unsure(msgspec.Struct, frozen=True):
    etag: str
    since_s: float


class FolderSource:
    """The source of one bucket. `path` is absolute; `create` makes the folder where it is missing."""

    def __init__(
        self, *, context: SourceContext, bucket: Bucket, selection: Selection, path: str, create: bool = False
    ) -> None:
        self._context = context
        self._bucket = bucket
        self._selection = selection
        self._path = path
        self._create = create

    async def run(self, emit: Emit) -> None:
        """Tell of uploads until cancelled; a folder that is missing is waited for."""
        async with asyncio.TaskGroup() as tasks:
            teller = _Teller(self._context, self._bucket, emit, tasks)
            folder = _Folder(self._context, self._selection, self._path, teller)
            teller.again = folder.add
            while True:
                try:
                    expected = await asyncio.to_thread(_prepare, self._path, self._create)
                    await folder.follow(expected)
                except FolderGone as error:
                    reason = f"{self._path}: {error.strerror}. Create the folder, or correct spec.store.folder.path."
                    self._context.trouble("FolderMissing", reason)
                await asyncio.sleep(MISSING_S)


class _Teller:
    """Emits objects' events, a bounded number at once and one a key, each marked once the sink has accepted it."""

    def __init__(self, context: SourceContext, bucket: Bucket, emit: Emit, tasks: asyncio.TaskGroup) -> None:
        self._context = context
        self._bucket = bucket
        self._emit = emit
        self._tasks = tasks
        self._slots = asyncio.Semaphore(MAX_EMITTING)
        # Keys whose event is under way, with the strongest hint to look at them again that came meanwhile.
        self._under_way: dict[str, Hint | None] = {}
        #: Called for those once their event is through.
        self.again: Callable[[str, Hint], None] | None = None

    def busy(self, key: str) -> bool:
        """Whether this key's event is under way."""
        return key in self._under_way

    def look_again(self, key: str, hint: Hint) -> None:
        """Make this key, whose event is under way, a candidate again once the event is through."""
        self._under_way[key] = max(hint, self._under_way[key] or hint)

    async def tell(self, key: str, version: FileVersion) -> None:
        """Start to emit; returns when there is room for it to be under way."""
        await self._slots.acquire()
        self._under_way[key] = None
        self._tasks.create_task(self._tell(key, version))

    async def _tell(self, key: str, version: FileVersion) -> None:
        found = StoredObject(key=key, size=version.size, etag=version.etag, appeared_s=version.changed_ns / 1e9)
        try:
            try:
                await self._emit(object_created(self._bucket, found))
            except Refused as error:
                # Waiting would not help, and telling it again at each start neither: it counts as told.
                facts = {"source": self._context.name, "key": key, "status": error.status, "reason": str(error)}
                _log.error("the sink refused an object's event; it is not sent again", extra={"facts": facts})
            await self._context.marks.write({key: version.etag})
        finally:
            self._slots.release()
            hint = self._under_way.pop(key)
            if hint is not None and self.again is not None:
                self.again(key, hint)


class _Folder:
    """What is known of the folder, and what has to be looked at."""

    def __init__(self, context: SourceContext, selection: Selection, path: str, teller: _Teller) -> None:
        self._context = context
        self._selection = selection
        self._path = path
        self._teller = teller
        self._watches = _Watches(path, self._heard)
        self._candidates: dict[str, Hint] = {}
        self._folders_to_list: set[str] = set()
        self._relist = True
        self._listed_at = 0.0
        self._lost = False
        self._wake = asyncio.Event()
        self._unsure: dict[str, _Unsure] = {}
        self._complained: set[str] = set()

    async def follow(self, expected: tuple[int, int]) -> None:
        """One stretch with the folder in place. Raises FolderGone at its end."""
        self._candidates.clear()
        self._relist, self._lost = True, False
        self._watches.open()
        try:
            self._watches.add("")
            self._context.ready()
            while True:
                await self._catch_up(expected)
                await self._wait(POLL_S if self._watches.incomplete else RELIST_S)
        finally:
            self._watches.close()

    async def _catch_up(self, expected: tuple[int, int]) -> None:
        """Deal with everything that is known to have happened."""
        if self._relist:
            self._relist = False
            self._folders_to_list.clear()
            self._listed_at = asyncio.get_running_loop().time()
            self._watches.incomplete = False
            await self._list("")
            await self._forget_missing(expected)
        while self._folders_to_list:
            await self._list(self._folders_to_list.pop())
        await self._drain()

    async def _wait(self, list_every_s: float) -> None:
        """Until something happened, a second look is due, or it is time to list again."""
        list_at = self._listed_at + list_every_s
        due = min([list_at, *(unsure.since_s + QUIET_S for unsure in islice(self._unsure.values(), 1))])
        if not (self._candidates or self._folders_to_list or self._relist):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
        now = asyncio.get_running_loop().time()
        self._relist = self._relist or now >= list_at
        for key, unsure in self._unsure.items():
            if now - unsure.since_s < QUIET_S:
                break  # the rest was seen later
            self.add(key, Hint.LISTED)

    # What happens in the folder: called by the event loop, never waits, never raises.

    def _heard(self, folder: str | None, happening: Happening) -> None:
        if happening.overflow or folder is None:
            # Events of a folder that we do not know of (any more) can be leftovers of one that moved within the bucket.
            self._relist = self._relist or happening.overflow
        elif happening.lost:
            self._lost = self._lost or not folder
        elif happening.is_folder:
            self._add_folder(f"{folder}{happening.name}/", left=happening.left)
        elif happening.name:
            self.add(folder + happening.name, _hint(happening))
        self._wake.set()

    def add(self, key: str, hint: Hint) -> None:
        """Have a key looked at."""
        if not self._selection.has(key):
            return
        held = self._candidates.get(key)
        if held is None and len(self._candidates) >= MAX_CANDIDATES:
            self._relist = True
            return
        self._candidates[key] = max(hint, held or hint)
        self._wake.set()

    def _add_folder(self, key: str, *, left: bool) -> None:
        if left or not self._selection.may_hold(key):
            return  # the marks of files that left with their folder go with the next listing
        if len(self._folders_to_list) >= MAX_FOLDERS:
            self._relist = True
        else:
            self._folders_to_list.add(key)

    # Candidates: batch by batch, with back-pressure from the sink.

    async def _list(self, start: str) -> None:
        """Make candidates of everything in a folder, with its key's slash, and below it."""
        lister = Lister(self._path, self._selection, start)
        self._watches.add(start)
        try:
            done = False
            while not done:
                step = await asyncio.to_thread(lister.step, BATCH)
                for key, reason in step.problems:
                    self._complain(key, reason)
                if step.folder is not None:
                    self._watches.add(step.folder)
                await self._settle(dict.fromkeys(step.keys, Hint.LISTED))
                await self._drain()
                done = step.done
        finally:
            lister.close()

    async def _drain(self) -> None:
        """What is waiting now; what comes meanwhile has its turn later, so that a listing gets on."""
        self._wake.clear()
        left = len(self._candidates)
        while left > 0 and self._candidates:
            batch = {key: self._candidates.pop(key) for key in list(islice(self._candidates, BATCH))}
            left -= len(batch)
            await self._settle(batch)
        if self._lost:
            raise FolderGone(None, "was deleted or moved away", self._path)

    async def _settle(self, batch: Mapping[str, Hint]) -> None:
        """Look at a batch of candidates, and start to tell those that are new."""
        for key in filter(self._teller.busy, batch):
            self._teller.look_again(key, batch[key])
        keys = [key for key in batch if not self._teller.busy(key)]
        if not keys:
            return
        sights = await asyncio.to_thread(_look_all, self._path, keys)
        # The kernel says that a writer closed a file before it lets go of it: where the look found the file complete,
        # its closing has been heard of by now. Then that, not this, is what tells it, and it is told once.
        self._watches.hear()
        marks = await self._context.marks.read(keys)
        changed: dict[str, str | None] = {}
        for key, sight in zip(keys, sights, strict=True):
            verdict = decide(batch[key], sight, marks.get(key), quiet_s=self._quiet_s(key, sight.version))
            if verdict is Verdict.TELL and sight.version is not None:
                if batch[key] is Hint.WRITTEN or self._candidates.get(key) is not Hint.WRITTEN:
                    await self._teller.tell(key, sight.version)
            elif verdict is Verdict.NOTE and sight.version is not None:
                changed[key] = sight.version.etag
            elif verdict is Verdict.FORGET:
                changed[key] = None
            else:
                self._leave(key, sight, verdict)
        await self._context.marks.write(changed)

    def _quiet_s(self, key: str, version: FileVersion | None) -> float:
        """For how long the file is known not to have changed."""
        if version is None:
            return 0.0
        now = asyncio.get_running_loop().time()
        seen = self._unsure.pop(key, None)
        if seen is not None and seen.etag == version.etag:
            return now - seen.since_s
        return self._context.clock.now() - version.modified_ns / 1e9

    def _leave(self, key: str, sight: Sight, verdict: Verdict) -> None:
        if verdict is Verdict.LOOK_LATER and sight.version is not None:
            if len(self._unsure) < MAX_UNSURE:
                self._unsure[key] = _Unsure(sight.version.etag, asyncio.get_running_loop().time())
        elif verdict is Verdict.COMPLAIN:
            self._complain(key, sight.reason)

    def _complain(self, key: str, reason: str) -> None:
        """Say once of each key why nothing is told of it."""
        if key in self._complained:
            return
        if len(self._complained) >= MAX_CANDIDATES:
            self._complained.clear()
        self._complained.add(key)
        self._context.count("unreadable")
        facts = {"source": self._context.name, "key": ascii(key), "reason": reason}
        _log.warning("nothing is told of this key until that changes", extra={"facts": facts})

    async def _forget_missing(self, expected: tuple[int, int]) -> None:
        """Drop the marks of files that are gone, so that the checkpoint is as large as the bucket and no larger."""
        after = ""
        while keys := await self._context.marks.page(after, BATCH):
            after = keys[-1]
            gone = await asyncio.to_thread(missing, self._path, expected, keys)
            await self._context.marks.write({key: None for key in gone if not self._teller.busy(key)})


#: Told of each happening with the key of the folder where it happened, None where that is not watched any more.
_Heard = Callable[[str | None, Happening], None]


class _Watches:
    """The inotify watches of a folder and those within it; `incomplete` where the system's limits allow no more."""

    def __init__(self, root: str, heard: _Heard) -> None:
        self._root = root
        self._heard = heard
        self._folders: dict[int, str] = {}
        self._inotify: Inotify | None = None
        self._warned = False
        self.incomplete = False

    def open(self) -> None:
        """Start without any watch."""
        try:
            self._inotify = Inotify(self._happened)
        except OSError as error:
            self._limited(error)

    def close(self) -> None:
        self._folders.clear()
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def hear(self) -> None:
        """Pass on what has happened up to now, without waiting for the event loop to come to it."""
        if self._inotify is not None:
            self._inotify.hear()

    def add(self, folder: str) -> None:
        """Watch one folder, by its key with its slash. One that vanished is passed over."""
        if self._inotify is None:
            self.incomplete = True
            return
        try:
            watch = self._inotify.watch(f"{self._root}/{folder}")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._limited(error)
            return
        # A folder that moved while events were lost keeps its number; the listing that follows gives its new name here.
        self._folders[watch] = folder

    def _happened(self, happening: Happening) -> None:
        folder = self._folders.get(happening.watch)
        if happening.ended:
            self._folders.pop(happening.watch, None)
        self._heard(folder, happening)
        if folder is not None and happening.is_folder and happening.left:
            self._end_below(f"{folder}{happening.name}/")

    def _end_below(self, moved: str) -> None:
        """A folder left: what happens in it from now on is under another name, or no concern of ours."""
        for watch, folder in list(self._folders.items()):
            if folder.startswith(moved):
                del self._folders[watch]
                if self._inotify is not None:
                    self._inotify.unwatch(watch)

    def _limited(self, error: OSError) -> None:
        self.incomplete = True
        if not self._warned:
            self._warned = True
            facts = {"folder": self._root, "reason": str(error), "every_s": POLL_S}
            _log.warning("inotify gives no more watches; the folder is listed instead", extra={"facts": facts})


def _prepare(path: str, create: bool) -> tuple[int, int]:
    """The folder's identity. Raises FolderGone."""
    if create:
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise FolderGone(error.errno, os.strerror(error.errno or 0), path) from error
    return identity(path)


def _look_all(root: str, keys: list[str]) -> list[Sight]:
    return [look(f"{root}/{key}") for key in keys]


def _hint(happening: Happening) -> Hint:
    if happening.written:
        return Hint.WRITTEN
    return Hint.APPEARED if happening.arrived else Hint.TOUCHED
