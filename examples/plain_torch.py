"""X-CLR in a plain torch loop: a folder of pictures and a graph of their captions in, an encoder out.

    python plain_torch.py --pictures pictures --graph-dir graphs/captions

The graph's sample ids are the names of the files. Nothing here needs a GPU.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18
from torchvision.transforms import v2

from graphbuild.torch import NeighborBatchSampler, SoftTargets, XCLRLoss


class TwoViews(Dataset):
    """Two augmentations of each picture, and its index."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(path for path in folder.iterdir() if path.is_file())
        self.ids = [path.name for path in self.paths]
        self.augment = v2.Compose(
            [v2.ToImage(), v2.RandomResizedCrop(size, scale=(0.2, 1)), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, True)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        picture = Image.open(self.paths[index]).convert("RGB")
        return self.augment(picture), self.augment(picture), index


def encoder(width: int = 128) -> nn.Module:
    """A ResNet-18 whose head projects to what the loss compares."""
    model = resnet18()
    model.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, width))
    return model


def main() -> None:
    """Train, and keep the encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--graph-dir", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    pictures = TwoViews(options.pictures, 64)
    targets = SoftTargets(options.graph_dir, device=device)
    positions = targets.positions(pictures.ids)
    # Leave the sampler out, and shuffle, for random batches.
    sampler = NeighborBatchSampler(options.graph_dir, pictures.ids, options.batch_size, chunk=8, drop_last=True)
    loader = DataLoader(pictures, batch_sampler=sampler)
    model, criterion = encoder().to(device), XCLRLoss(tau=0.1, tau_s=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        targets.set_epoch(epoch)
        for step, (view0, view1, index) in zip(range(options.steps or len(loader)), loader, strict=False):
            z0, z1 = model(torch.cat([view0, view1]).to(device)).chunk(2)
            loss = criterion(z0, z1, targets(positions[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.3f} {targets.describe(positions[index])}")
    torch.save(model.state_dict(), "encoder.pt")


if __name__ == "__main__":
    main()
