"""X-CLR with lightly: its data set, transform and projection head; our sampler, targets and loss.

    python with_lightly.py --pictures pictures --graph-dir graphs/captions

The graph's sample ids are the names of the files, which lightly's data set gives with every picture.
"""

import argparse

import torch
from lightly.data import LightlyDataset
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from graphbuild.torch import NeighborBatchSampler, SoftTargets, XCLRLoss


def main() -> None:
    """Train, and keep the backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--graph-dir", required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="stop an epoch after so many")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    pictures = LightlyDataset(options.pictures, transform=SimCLRTransform(input_size=options.image_size))
    names = pictures.get_filenames()
    targets = SoftTargets(options.graph_dir, device=device)
    known = targets.coverage(names)
    print(f"the graph knows {known.known:,} of {known.total:,} pictures")
    sampler = NeighborBatchSampler(options.graph_dir, names, options.batch_size, chunk=8, drop_last=True)
    loader = DataLoader(pictures, batch_sampler=sampler)

    backbone = resnet18()
    backbone.fc = nn.Identity()
    model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128)).to(device)
    # Where lightly has NTXentLoss, which takes z0 and z1; this one takes their similarities, too.
    criterion = XCLRLoss(tau=0.1, tau_s=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        for step, (views, _, batch_names) in zip(range(options.steps or len(loader)), loader, strict=False):
            z0, z1 = (model(view.to(device)) for view in views)
            loss = criterion(z0, z1, targets(batch_names, epoch=epoch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                print(f"epoch {epoch} step {step} loss {loss.item():.3f}")
    torch.save(backbone.state_dict(), "backbone.pt")


if __name__ == "__main__":
    main()
