"""The network as it is exported: one tensor in, one out, no heads that only training needs."""

from torch import Tensor, nn

from covidseg_train.unet import UNet3d


class ExportableUNet(nn.Module):
    """Wraps a ``UNet3d`` so that its forward is the graph to export."""

    def __init__(self, network: UNet3d) -> None:
        """Keep the finest head; put the network into inference mode."""
        super().__init__()
        self.encoder = network.encoder
        self.decoder = network.decoder
        self.head = network.heads[0]
        self.eval()

    def forward(self, tiles: Tensor) -> Tensor:
        """Map tiles (N, 1, Z, Y, X) to logits (N, C, Z, Y, X)."""
        logits: Tensor = self.head(self.decoder(self.encoder(tiles))[0])
        return logits
