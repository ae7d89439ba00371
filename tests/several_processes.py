"""Run by torchrun: what the processes of one training agree on, and a training of each kind of network.

    torchrun --standalone --nproc-per-node 2 tests/several_processes.py OUT

The first process writes ``OUT/agreed.json`` and ``OUT/NETWORK.pt``, its weights after some steps.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kdedge.dataset import Split
from kdedge.pipeline.training import distributed
from kdedge.pipeline.training.balance import cross_entropy
from kdedge.pipeline.training.batches import Batches, predict_logits
from kdedge.pipeline.training.epoch_loop import EpochLoop

NETWORKS = ("plain", "norms")
_CPU = torch.device("cpu")


def agree(out: Path) -> None:
    """Let every process contribute its own values, and write what they agree on."""
    own = distributed.rank()
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(own)
    found = {
        "mean": distributed.mean(torch.tensor(float(own))).item(),
        "total": distributed.total(own + 1),
        "first": distributed.from_first(lambda: own),
        "parts": distributed.map_parts(lambda part: [part, own], range(5)),
        "size in the first": distributed.from_first(distributed.size),
        "weighted loss": _weighted_loss(),
    }
    distributed.average_norms(norm)
    found["running mean"] = norm.running_mean.tolist()
    distributed.end_together()
    (out / "agreed.json").write_text(json.dumps(found))


def _weighted_loss() -> float:
    """Return the loss of a batch with an image of a rare class in one share only."""
    logits, labels, part = torch.eye(4)[:, :3], torch.tensor([0, 0, 0, 1]), distributed.share(4)
    loss = cross_entropy(logits[part], labels[part], torch.tensor([0.5, 2.5, 1.0]))
    return distributed.mean(loss).item()


def train(out: Path, network: str) -> list[dict[str, float]]:
    """Train a network for 12 steps and write its weights."""
    (out / network).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(distributed.rank())  # only the weights of the first process count
    middle = nn.BatchNorm2d(4) if network == "norms" else nn.Identity()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3), nn.Linear(3, 3))
    unused = nn.Linear(2, 2)  # as the adapters of hints that have ended
    optimizer = torch.optim.SGD([*model.parameters(), *unused.parameters()], lr=0.05, momentum=0.9, weight_decay=0.1)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8), np.arange(48) % 3)
    forward = distributed.parallel(model, model, unused, unused=True)

    def step(batch, epoch, rate):
        model.train()
        loss = functional.cross_entropy(forward(batch.pixels), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "ce": loss}

    def validate(epoch):
        return {"val_top1_pct": 100 * (predict_logits(model.eval(), split, _CPU).argmax(1) == 0).float().mean().item()}

    loop = EpochLoop(
        title=network, model=model, epochs=4, batches=Batches(split, 16, 0, 1, _CPU), val_labels=split.labels,
        state={"model": model, "optimizer": optimizer, "unused": unused}, step=step, finish_epoch=validate,
        out_dir=out / network, csv_name="log.csv",
    )  # fmt: skip
    rows, _ = loop.run()
    torch.save({**model.state_dict(), "unused": unused.weight.detach()}, out / f"{network}.pt")
    return rows


def main(out: Path) -> None:
    """Run all of it."""
    torch.set_num_threads(1)
    distributed.join()
    if distributed.rank():
        distributed.take_part()
        distributed.leave(0)
    distributed.train_together(agree, out)
    for network in NETWORKS:
        distributed.train_together(train, out, network)
    distributed.dismiss()
    distributed.leave(0)


if __name__ == "__main__":
    # Not this module by the name __main__, which the other processes would not find in it.
    import several_processes

    several_processes.main(Path(sys.argv[1]))
