"""X-CLR with Hugging Face accelerate: one process or many, mixed precision, and a state to go on from.

    accelerate launch with_accelerate.py --pictures pictures --graph-dir graphs/captions

The graph's sample ids are the names of the files. The sampler shares its batches out among the processes itself, so the
loader is not prepared.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
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


def main() -> None:
    """Train, and keep where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--graph-dir", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=64, help="of one process")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many")
    options = parser.parse_args()
    accelerator = Accelerator()
    pictures = TwoViews(options.pictures, 64)
    sampler = NeighborBatchSampler(options.graph_dir, pictures.ids, options.batch_size, chunk=8, drop_last=True)
    loader = DataLoader(pictures, batch_sampler=sampler)
    targets, criterion = SoftTargets(options.graph_dir, device=accelerator.device), XCLRLoss(tau=0.1, tau_s=0.1)
    model = resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    # Its position is saved with the model.
    accelerator.register_for_checkpointing(sampler)
    for epoch in range(options.epochs):
        for step, (view0, view1, names) in zip(range(options.steps or len(loader)), loader, strict=False):
            with accelerator.autocast():
                z0, z1 = model(torch.cat([view0, view1]).to(accelerator.device)).chunk(2)
            loss = criterion(z0, z1, targets(names, epoch=epoch))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            if step % 50 == 0:
                accelerator.print(f"epoch {epoch} step {step} loss {loss.item():.3f}")
    accelerator.save_state("state")


if __name__ == "__main__":
    main()
