"""Finetune the vision tower of a pretrained CLIP with X-CLR on your own captions.

    python finetune_open_clip.py --pictures pictures --graph-dir graphs/captions

The graph's sample ids are the names of the files. `--pretrained ""` begins with random weights, without a download.
"""

import argparse
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from graphbuild.torch import NeighborBatchSampler, SoftTargets, XCLRLoss


class TwoViews(Dataset):
    """Two augmentations of each picture, and its name."""

    def __init__(self, folder: Path, augment: nn.Module) -> None:
        self.paths = sorted(path for path in folder.iterdir() if path.is_file())
        self.ids = [path.name for path in self.paths]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        picture = Image.open(self.paths[index]).convert("RGB")
        return self.augment(picture), self.augment(picture), self.ids[index]


def main() -> None:
    """Finetune, and keep the vision tower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--graph-dir", type=Path, required=True)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pretrained", default="laion2b_s34b_b79k")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # Crops that keep less of the picture than open_clip's own, for the two views are to differ.
    clip, augment, _ = open_clip.create_model_and_transforms(
        options.model, pretrained=options.pretrained or None, aug_cfg={"scale": (0.4, 1.0)}, device=device
    )
    vision = clip.visual
    head = nn.Sequential(nn.Linear(vision.output_dim, 512), nn.ReLU(), nn.Linear(512, 128)).to(device)
    pictures = TwoViews(options.pictures, augment)
    sampler = NeighborBatchSampler(options.graph_dir, pictures.ids, options.batch_size, chunk=8, drop_last=True)
    loader = DataLoader(pictures, batch_sampler=sampler)
    targets, criterion = SoftTargets(options.graph_dir, device=device), XCLRLoss(tau=0.1, tau_s=0.1)
    # The tower is pretrained and the head is not.
    groups = [{"params": vision.parameters(), "lr": 1e-5}, {"params": head.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups)
    for epoch in range(options.epochs):
        for step, (view0, view1, names) in zip(range(options.steps or len(loader)), loader, strict=False):
            z0, z1 = head(vision(torch.cat([view0, view1]).to(device))).chunk(2)
            loss = criterion(z0, z1, targets(names, epoch=epoch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.3f}")
    torch.save(vision.state_dict(), "vision.pt")


if __name__ == "__main__":
    main()
