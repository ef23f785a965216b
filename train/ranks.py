"""The processes of a training run, one a GPU, as torchrun starts them; a single one without it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    count: int = 1
    on_this_node: int = 1  # of the count

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Numbers, each summed over all ranks."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return list(tensor.tolist())

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all ranks."""
        if self.count > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            parts = torch.split(flat / self.count, [tensor.numel() for tensor in tensors])
            for tensor, mean in zip(tensors, parts, strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, values: list[T]) -> list[T]:
        """The values of all ranks, in the order of the ranks."""
        if self.count == 1:
            return values
        found: list[list[T] | None] = [None] * self.count
        dist.all_gather_object(found, values)
        return [value for some in found for value in some or ()]

    def all_or_none(self, work: Callable[[], T]) -> T:
        """What `work` gives on this rank; where it raises on another, this one ends without a word."""
        failed = 1
        try:
            found = work()
            failed = 0
        finally:
            others = self.sum([failed])[0] - failed
        if others:
            raise SystemExit(1)
        return found

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, for all; where it raises there, the others end without a word."""
        if self.count == 1:
            return work()
        message: list[tuple[T] | None] = [None]
        try:
            if self.first:
                message = [(work(),)]
        finally:
            dist.broadcast_object_list(message)
        if message[0] is None:
            raise SystemExit(1)
        return message[0][0]


def this_rank() -> Ranks:
    """This process as torchrun has started it, or the only one; `joined` is to come before it speaks with others."""
    gpu = torch.cuda.is_available()
    if "LOCAL_RANK" not in os.environ:
        return Ranks(torch.device("cuda" if gpu else "cpu"))
    rank, count, local, node = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    return Ranks(torch.device(f"cuda:{local}" if gpu else "cpu"), rank, count, node)


@contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """Join the others that torchrun has started, on NCCL where each has a GPU and on gloo elsewhere."""
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    gpu = ranks.device.type == "cuda"
    if gpu:
        torch.cuda.set_device(ranks.device)
    store = None
    if ranks.on_this_node == ranks.count:
        # torchrun of torch 2.13 keeps one store for all restarts, in which addresses of ranks that were killed stay.
        # (The agents of several nodes count restarts each for itself: there, no prefix would be the same for all.)
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.count))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=ranks.rank, world_size=ranks.count)
    try:
        yield
    finally:
        dist.destroy_process_group()
