"""The processes that train one run together, and all that they tell each other.

Whoever started them, torchrun as a rule, names them in RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Tensors travel by
gloo or NCCL, words through the store behind both: who waits for words waits as long as it takes.
"""

import itertools
import json
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from clipcoco.cores import processes
from clipcoco.errors import ClipcocoError, DistributedError, EnvironmentProblem, Unheard, is_out_of_memory

T = TypeVar("T")
U = TypeVar("U")
_LONGEST = 900.0  # seconds that one waits for the others' tensors; CLIPCOCO_TIMEOUT sets another number
_LAST_WORDS = 3.0  # seconds in which those that live say so when one has gone
_LOOK_SECONDS = 0.02
_BUCKET = 2**23  # numbers that are added in one go: 32 MB of float32


@dataclass(frozen=True)
class Group:
    """This process among those of its run. Alone it tells nobody anything: every method gives back what it got."""

    rank: int = 0
    size: int = 1
    store: Any = None
    _numbers: Iterator[int] = field(default_factory=itertools.count, compare=False)

    # ---- tensors ----------------------------------------------------------------------------------------

    def rows(self, count: int) -> slice:
        """Which of `count` rows are this one's; all have equally many."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all, by rank, cut off from any gradient: (b,D) -> (B,D)."""
        rows = rows.detach()
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        with self._listening():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def added(self, tensor: Tensor) -> Tensor:
        """`tensor` itself, to which those of all others have been added: equal bits everywhere."""
        if self.size > 1:
            with self._listening():
                dist.all_reduce(tensor)
        return tensor

    def batches(self, count: int, size: int) -> list[range]:
        """The batches of this one, of `size` rows: all have whole ones in turn, so that their bits are those of one
        process."""
        return [range(first, min(first + size, count)) for first in range(0, count, size)][self.rank :: self.size]

    def put_together(self, batches: Sequence[Tensor], rows: Sequence[range]) -> Tensor:
        """The rows of all in their order, where each has those of its own `batches`, on the CPU."""
        if self.size == 1:
            return torch.cat(list(batches))
        parts = [pair for one in self.collected([*zip(rows, batches, strict=True)]) for pair in one]
        return torch.cat([batch for _, batch in sorted(parts, key=lambda pair: pair[0].start)])

    def in_turn(
        self, compute: Callable[[list[T]], Iterator[U]], rows: Sequence[T], size: int, stop: Callable[[], str | None]
    ) -> Iterator[U]:
        """What `compute` gives of the batches of `rows`, in their order or until a stop, each computed by one."""
        if not rows:
            return
        own = compute([rows[i] for batch in self.batches(len(rows), size) for i in batch])
        while not self.agreed(stop())[0]:
            found = self.collected(next(own, None))
            yield from (one for one in found if one is not None)
            if None in found:  # the last ones have none any more
                return

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """The sum over all in the place of each one's own gradient, in few large messages."""
        if self.size == 1:
            return
        waiting = [parameter.grad for parameter in parameters if parameter.grad is not None]
        while waiting:
            bucket, numbers = [waiting.pop(0)], 0
            while waiting and (numbers := numbers + bucket[-1].numel()) + waiting[0].numel() <= _BUCKET:
                bucket.append(waiting.pop(0))
            flat = self.added(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    # ---- objects ----------------------------------------------------------------------------------------

    def collected(self, mine: T) -> list[T]:
        """What each one has, by rank."""
        found: list[Any] = [mine] * self.size
        if self.size > 1:
            with self._listening():
                dist.all_gather_object(found, mine)
        return found

    def agreed(self, reason: str | None, unreadable: Sequence[int] = ()) -> tuple[str | None, tuple[int, ...]]:
        """The first reason to stop that any of them has, and what any of them could not read: the same for all."""
        if self.size == 1:
            return reason, tuple(unreadable)
        if not self.added(torch.tensor(bool(reason) + len(unreadable))):  # nearly always, and it comes with every step
            return None, ()
        said = self.collected((reason, tuple(unreadable)))
        return next((one for one, _ in said if one), None), tuple(row for _, rows in said for row in rows)

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first one computes, however long that takes: small, as it goes through the store."""
        if self.size == 1:
            return compute()
        key = f"first/{next(self._numbers)}"
        if self.rank == 0:
            found = compute()
            with self._listening():
                self.store.set(key, pickle.dumps(found))
            return found
        answer: T = pickle.loads(self._heard(key))
        return answer

    def said(self, mine: T) -> T:
        """What the first one has to say: its own words for it, for the others whatever stands for them."""
        return self.from_first(lambda: mine)

    def spread(self, mine: T) -> T:
        """What the first one has, for all: large, as tensors go."""
        found = [mine]
        if self.size > 1:
            with self._listening():
                dist.broadcast_object_list(found, src=0)
        return found[0]

    # ---- the end ----------------------------------------------------------------------------------------

    def end(self, code: int) -> int:
        """The first one's exit code, for all; whoever is started with them leaves with them."""
        if self.size > 1:
            code = self.from_first(lambda: code)
            self._leave()
            dist.destroy_process_group()
        return code

    def fail(self, error: BaseException) -> None:
        """Tell the others, before this one leaves, why it does; the first cause stays."""
        if self.size > 1 and not isinstance(error, DistributedError):
            code = int(error.exit_code) if isinstance(error, ClipcocoError) else 1
            message = str(error) if code != 1 else f"this is a bug in clipcoco: {type(error).__name__}: {error}"
            said = {"rank": self.rank, "code": code, "message": message}
            try:
                self.store.compare_set("failed", "", json.dumps(said))
                self._leave()
            except RuntimeError:  # the store went first
                return

    def _leave(self) -> None:
        """The first one last, for a while: the store, and with it what was said, may be its own."""
        self.store.set(f"left/{self.rank}", "")
        end, others = time.monotonic() + _LAST_WORDS, [f"left/{rank}" for rank in range(1, self.size)]
        while self.rank == 0 and time.monotonic() < end and not all(map(self._is_there, others)):
            time.sleep(_LOOK_SECONDS)

    def _heard(self, key: str) -> bytes:
        """What the first one says under `key`, as soon as it does; raises what ended it, if that came before."""
        with self._listening():
            while not self._is_there(key):
                if self._is_there("failed"):
                    raise self._cause()
                time.sleep(_LOOK_SECONDS)
            said: bytes = self.store.get(key)
            return said

    def _is_there(self, key: str) -> bool:
        return bool(self.store.check([key]))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """What the back ends make of a process that is gone, or silent for too long, is one line with its cause."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self._why_gone() from error

    def _why_gone(self) -> ClipcocoError:
        alive = {self.rank}
        try:
            self.store.set(f"alive/{self.rank}", "")
            end = time.monotonic() + _LAST_WORDS
            while time.monotonic() < end:
                if self._is_there("failed"):
                    return self._cause()
                time.sleep(_LOOK_SECONDS)
            alive |= {rank for rank in range(self.size) if self._is_there(f"alive/{rank}")}
        except RuntimeError:  # the store went with the first one, which had it
            alive = {*range(1, self.size)}
        gone = [rank for rank in range(self.size) if rank not in alive]
        which = f"process {gone[0]} of {self.size}" if gone else f"one of {self.size} processes"
        what = f"{which} is gone, or answers no more (RANK). Its own log may say why"
        return Unheard(what) if 0 in gone and self.rank == min(alive) else DistributedError(what)

    def _cause(self) -> ClipcocoError:
        said = json.loads(self.store.get("failed"))
        self._leave()
        kinds = {kind.exit_code: kind for kind in ClipcocoError.__subclasses__()}
        return kinds.get(said["code"], ClipcocoError)(f"{said['message']} [process {said['rank']} of {self.size}]")


ALONE = Group()


@contextmanager
def _silent() -> Iterator[None]:
    """Without stdout: torch 2.10's gloo tells there whom it has met, where a command's --json belongs."""
    try:
        kept = os.dup(1)
    except OSError:  # closed
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@cache
def join() -> Group:
    """This process with the others that were started for the same run, which must come too; alone where it is.

    Raises EnvironmentProblem where they can't meet.
    """
    rank, size = processes()
    if size == 1:
        return ALONE
    try:
        if os.environ.get("RANK") != str(rank):
            raise ValueError(f"RANK is {os.environ.get('RANK')}, and not one of 0 to {size - 1}")
        longest = timedelta(seconds=float(os.environ.get("CLIPCOCO_TIMEOUT", _LONGEST)))
        shared, *_ = next(rendezvous("env://", timeout=longest))
        # The launcher's own store outlives a restart, with all that was said before it.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), shared)
        if rank == 0:
            store.set("here", "")
        while not store.check(["here"]):  # not yet inside torch, where no signal would be heard: it may never come
            time.sleep(_LOOK_SECONDS)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _silent():
            dist.init_process_group(
                backend, store=PrefixStore("tensors", store), rank=rank, world_size=size, timeout=longest
            )
    except (RuntimeError, ValueError, OverflowError, OSError) as error:
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise EnvironmentProblem(
            f"{size} processes can't meet: {why} (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, CLIPCOCO_TIMEOUT). "
            f"Start them with torchrun, which sets the first four"
        ) from error
    return Group(rank, size, PrefixStore("words", store))
