"""X-CLR in Lightning: a module that takes two views and the names of the pictures; several GPUs need no other code.

    python with_lightning.py --pictures pictures --graph-dir graphs/captions

The graph's sample ids are the names of the files.
"""

import argparse
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

from graphbuild.torch import NeighborBatchSampler, SoftTargets, XCLRLoss


class TwoViews(Dataset):
    """Two augmentations of each picture, and its name."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(path for path in folder.iterdir() if path.is_file())
        self.ids = [path.name for path in self.paths]
        self.augment = v2.Compose(
            [v2.ToImage(), v2.RandomResizedCrop(size, scale=(0.2, 1)), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, True)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        picture = Image.open(self.paths[index]).convert("RGB")
        return self.augment(picture), self.augment(picture), self.ids[index]


class XCLR(LightningModule):
    """An encoder and its loss."""

    def __init__(self, graph_dir: Path) -> None:
        super().__init__()
        self.model = resnet18(num_classes=128)
        # The loss takes similarities to the device of the views.
        self.targets, self.criterion = SoftTargets(graph_dir), XCLRLoss(tau=0.1, tau_s=0.1)

    def training_step(self, batch: tuple[Tensor, Tensor, list[str]], step: int) -> Tensor:
        """The loss of one batch; under DDP that of all processes together."""
        view0, view1, names = batch
        z0, z1 = self.model(torch.cat([view0, view1])).chunk(2)
        loss = self.criterion(z0, z1, self.targets(names, epoch=self.current_epoch))
        self.log("loss", loss)
        if step % 50 == 0:
            self.log_dict(self.targets.describe(names))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train, and keep the encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--graph-dir", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=-1)
    options = parser.parse_args()
    pictures = TwoViews(options.pictures, 64)
    sampler = NeighborBatchSampler(options.graph_dir, pictures.ids, options.batch_size, chunk=8, drop_last=True)
    # The sampler shares its batches out among the processes itself.
    trainer = Trainer(max_epochs=10, max_steps=options.steps, use_distributed_sampler=False, log_every_n_steps=1)
    trainer.fit(XCLR(options.graph_dir), DataLoader(pictures, batch_sampler=sampler))


if __name__ == "__main__":
    main()
