"""The moving average of a network's trained weights.

Frozen weights, a diffusion model above all, are not copied: the average holds trained weights only.
Buffers, such as the statistics of batch normalization, are the network's own.
"""

import contextlib
from collections.abc import Iterator

import torch

from pipeline.averages import mean_then_ema_share, update_average


class WeightAverage(torch.nn.Module):
    """The exponential moving average of the trained weights of `network`.

    At first it is the mean of all weights so far, so that the initial weights do not stay in it.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._network = (network,)  # a tuple: not registered as a submodule
        for name, weight in self._trained():
            self.register_buffer(name.replace(".", "/"), weight.detach().clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        named = self._network[0].named_parameters()
        return [(name, weight) for name, weight in named if weight.requires_grad]

    def follow(self) -> None:
        """Move the average towards the weights of the network."""
        updates = self.get_buffer("updates")
        updates += 1
        trained = self._trained()
        averages = [self.get_buffer(name.replace(".", "/")) for name, _ in trained]
        share = mean_then_ema_share(self.decay, int(updates))
        update_average(averages, [weight for _, weight in trained], share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[torch.nn.Module]:
        """Put the average into the network, in eval mode, for the time of the block."""
        network = self._network[0]
        trained = self._trained()
        kept = [weight.data for _, weight in trained]
        for name, weight in trained:
            weight.data = self.get_buffer(name.replace(".", "/"))
        network.eval()
        try:
            yield network
        finally:
            network.train()
            for (_, weight), data in zip(trained, kept, strict=True):
                weight.data = data
