"""One training in several processes, with PyTorch's launcher ``torchrun`` and its DistributedDataParallel.

The first process runs the command, and the others take part in its trainings: `train_together` runs a training stage in
all of them until its last epoch. Each process takes its share of every batch, so the batch size and the learning rate
are those of one process. Without torchrun, the functions here do nothing.

    torchrun --nproc-per-node 2 -m kdedge run-all --data sample --out artifacts/demo
"""

import atexit
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from kdedge.errors import InputError, StageError
from kdedge.progress import console, set_quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdedge.pipeline.training.checkpoint import Stateful

__all__ = [
    "average_norms",
    "copy_state",
    "dismiss",
    "end_together",
    "from_first",
    "join",
    "leave",
    "local_processes",
    "map_parts",
    "mean",
    "parallel",
    "processes",
    "rank",
    "refuse",
    "share",
    "size",
    "take_part",
    "total",
    "train_together",
    "use_own_gpu",
]

T = TypeVar("T")
PartT = TypeVar("PartT")

_PATIENCE = timedelta(days=1)  # how long processes wait for each other; torchrun ends them if one fails
_REPORT_S = 5.0  # after which an error of another process than the first is its own

# Whether this process was started as one of several, and whether all of them are in a training.
_now = SimpleNamespace(joined=False, together=False)


class _TrainedError(Exception):
    """Ends the part of a process in a training."""


def processes() -> int:
    """Return the number of processes that torchrun started, on all hosts; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def local_processes() -> int:
    """Return the number of these processes on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if processes() > 1 else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def size() -> int:
    """Return the number of processes that train together now."""
    return processes() if _now.together else 1


def refuse(what: str) -> None:
    """Refuse a command that cannot use several processes.

    Raises:
        InputError: torchrun started several.
    """
    if processes() > 1:
        raise InputError(
            f"{what} does not run in the {processes()} processes of torchrun",
            "start it without torchrun; torchrun is for run-all of one student, teacher and distill",
        )


def use_own_gpu() -> None:
    """Compute on the GPU of this process.

    Raises:
        InputError: There are fewer GPUs than processes on this host.
    """
    import torch

    if processes() == 1:
        return
    if local_processes() > torch.cuda.device_count():
        raise InputError(
            f"{local_processes()} processes on this host share {torch.cuda.device_count()} GPUs",
            "start one process per GPU (--nproc-per-node gpu), or use --device cpu",
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def join() -> None:
    """Connect the processes of torchrun."""
    # Hints train only a part of the weights in some epochs, and DistributedDataParallel warns of all others.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torch import distributed

    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    _now.joined = True


def take_part() -> None:
    """Take part in the trainings of the first process, until it needs no other any more.

    Raises:
        Exception: A training failed here. If it failed in all processes, the first has reported the error before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, and torchrun ends this one
    set_quiet(True)
    console.quiet = True
    warnings.simplefilter("ignore")
    try:
        with _lost_processes():
            while task := _broadcast(None):
                _now.together = True
                try:
                    task[0](*task[1:])
                except _TrainedError:
                    _now.together = False
    except Exception:
        time.sleep(_REPORT_S)
        console.quiet = False
        raise


def train_together(stage: Callable[..., T], *arguments: Any) -> T:
    """Call a training stage in all processes, and return what it returns in the first."""
    if processes() == 1:
        return stage(*arguments)
    with _lost_processes():
        _broadcast((stage, *arguments))
        _now.together = True
        return stage(*arguments)


def end_together() -> None:
    """End a training: only the first process continues its stage."""
    if size() > 1 and rank():
        raise _TrainedError
    _now.together = False


def dismiss() -> None:
    """End the other processes, because there is no further training."""
    if processes() == 1:
        return
    from torch import distributed

    _broadcast(None)
    distributed.destroy_process_group()
    del os.environ["TORCHELASTIC_RUN_ID"]  # the only process now, also for those that later stages start


def leave(code: int) -> NoReturn:
    """End this process; one of several without Python's finalisation, which gloo's threads may abort.

    Such a thread that frees a tensor after the interpreter has gone ends the process with SIGABRT (seen in one of 12
    runs; pytorch/pytorch#190489).
    """
    if _now.joined:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Turn a lost connection into an error for the user."""
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        raise StageError(
            f"process {rank()} lost the connection to another process of the training",
            "see the error of that process, then run the same command again to resume",
        ) from error


def _broadcast(value: Any) -> Any:
    """Return the value of the first process."""
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def share(count: int) -> slice:
    """Return the part of ``count`` images of a batch that this process takes.

    Raises:
        InputError: The parts would have different sizes.
    """
    each, rest = divmod(count, size())
    if rest:
        raise InputError(
            f"{count} images per step do not divide into equal shares for {size()} processes",
            f"set --teacher-batch-size and --distill-batch-size to multiples of {size()}",
        )
    start = each * (rank() if size() > 1 else 0)
    return slice(start, start + each)


def map_parts(function: Callable[[PartT], T], parts: Sequence[PartT]) -> list[T]:
    """Return the result of a function for every part; each process computes some of them."""
    if size() == 1:
        return [function(part) for part in parts]
    from torch import distributed

    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, [function(part) for part in parts[rank() :: size()]])
    return [found[index % size()][index // size()] for index in range(len(parts))]


def from_first(function: Callable[[], T]) -> T:
    """Call a function in the first process, and return in all what it returns there."""
    if size() == 1:
        return function()
    value = None
    if rank() == 0:
        _now.together = False
        value = function()
        _now.together = True
    result: T = _broadcast(value)
    return result


def mean(value: "Tensor") -> "Tensor":
    """Return the mean of a tensor over the processes, without gradients."""
    return _sum(value) / size() if size() > 1 else value


def total(value: int) -> int:
    """Return the sum of a number over the processes."""
    import torch

    return int(_sum(torch.tensor(value))) if size() > 1 else value


def _sum(value: "Tensor") -> "Tensor":
    from torch import distributed

    value = value.detach().clone()
    distributed.all_reduce(value)
    return value


def copy_state(state: Mapping[str, "Stateful"]) -> None:
    """Copy the state of some objects from the first process to the others."""
    if size() == 1:
        return
    import torch

    buffer = io.BytesIO()
    if rank() == 0:
        torch.save({name: target.state_dict() for name, target in state.items()}, buffer)
    content = _broadcast(buffer.getvalue())
    if rank():
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        for name, target in state.items():
            target.load_state_dict(saved[name])


def average_norms(*modules: "nn.Module") -> None:
    """Replace the statistics of batch norms, each of the images of one process, by their means."""
    if size() == 1:
        return
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]
    values = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    if values:
        means = mean(torch.cat(values))
        for value, average in zip(values, torch.split(means, [len(value) for value in values]), strict=True):
            value.copy_(average)


def parallel(function: Callable[..., T], *modules: "nn.Module", unused: bool = False) -> Callable[..., T]:
    """Return a function whose result has the gradients of all processes: their mean, in the weights of some modules.

    Args:
        function: Uses the modules. All tensors with gradients that it returns are trained.
        modules: The trained modules.
        unused: Whether some of their weights may have no gradient.
    """
    if size() == 1:
        return function
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trained = nn.ModuleList(modules)

        def forward(self, *arguments: Any) -> T:
            return function(*arguments)

    with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # a new name of broadcast_buffers in 2.14
        called: Callable[..., T] = DistributedDataParallel(
            Called(),
            find_unused_parameters=unused,
            broadcast_buffers=False,  # `average_norms` averages the statistics of batch norms
        )
    return called
