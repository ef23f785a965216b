"""I3D, the inflated Inception-v1 of "Quo Vadis, Action Recognition?" (Carreira & Zisserman, 2017; section 3, figure 3).

Where the paper leaves a choice open, this is the network that DeepMind released (google-deepmind/kinetics-i3d,
`i3d.py`): its endpoint names, its SAME padding that depends on the size of the input, its batch normalisation without
a scale, its average of the logits over time. With the released weights it gives the released logits.
"""

from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn

from model.inception import MINIMUM_SIDE, Inception, endpoint_names
from model.layers import Architecture, Stream, TemporalPadding, check_arguments, check_input, initialise, stream_of

MINIMUM_FRAMES = 9  # gives two time steps, the extent of the average pool
AVERAGE_POOL = (2, 7, 7)  # time, height, width; of smaller pictures all height and width


class I3D(Inception):
    """One stream of the two-stream I3D: video or flow in, class logits out.

    The attributes are the released network's endpoints, in order: `Conv3d_1a_7x7`, `MaxPool3d_2a_3x3`, … `Mixed_5c`;
    `Logits` is the last 1x1x1 convolution. Two streams are joined by adding their logits before the softmax.

    Args:
        num_classes: how many logits.
        in_channels: 3 for RGB, 2 for flow.
        dropout: probability of dropping a feature in training (0.5: the released training).
        temporal_padding: what SAME padding fills in beyond the first and last frame. "zero" is the released network.
            "replicate" repeats the border frame, with which a constant video gives the same features at any length:
            the "boring video" fixed point of section 3. Space is always padded with zeros.

    Raises:
        ValueError: for arguments out of range.
    """

    ENDPOINTS = endpoint_names(3)

    architecture: Architecture = "i3d"
    checks_values = True  # of its input, in evaluation mode; whoever scales the input itself need not

    def __init__(
        self,
        num_classes: int = 400,
        in_channels: int = 3,
        dropout: float = 0.5,
        temporal_padding: TemporalPadding = "zero",
    ) -> None:
        check_arguments(num_classes, dropout)
        stream = stream_of(in_channels)
        if temporal_padding not in get_args(TemporalPadding):
            raise ValueError(f"temporal_padding {temporal_padding!r} must be one of {get_args(TemporalPadding)}")
        super().__init__(in_channels, 3, temporal_padding)
        self.streams: tuple[Stream, ...] = (stream,)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.temporal_padding: TemporalPadding = temporal_padding
        self.dropout = nn.Dropout(dropout)
        self.Logits = nn.Conv3d(self.OUT_CHANNELS, num_classes, 1)
        initialise(self.Logits)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits, averaged over time.

        In evaluation mode the range of the values is checked too, because there a mistake is silent: the released RGB
        network still names the right class with badly scaled input, only less often. Training pays no such pass over
        each batch; a trainer calls `check_range` where it decodes.

        Args:
            x: [B, in_channels, T, H, W] floats in [-1, 1]; T at least 9, H and W at least 32.

        Returns:
            [B, num_classes].

        Raises:
            ValueError: if `x` has another rank, channel count or dtype, is too small, or (in evaluation mode) has
                values clearly outside [-1, 1].
        """
        return self.logits_per_step(x).mean(dim=2)

    def logits_per_step(self, x: Tensor) -> Tensor:
        """Class logits of each time step; `forward` is their mean.

        Pictures larger than 224x224 have several positions of the 7x7 average pool; their logits are averaged.

        Args:
            x: as for `forward`.

        Returns:
            [B, num_classes, T'] with T' = ceil(T / 8) - 1, one step every 8 frames.

        Raises:
            ValueError: as `forward`.
        """
        return self.classify(self.endpoint(x, self.ENDPOINTS[-1]))

    def classify(self, features: Tensor) -> Tensor:
        """Class logits of each time step, from the activation of the last endpoint.

        Args:
            features: [B, 1024, T', H', W'], T' at least 2.

        Returns:
            [B, num_classes, T' - 1].
        """
        time, *space = AVERAGE_POOL
        extents = (time, *(min(n, there) for n, there in zip(space, features.shape[3:], strict=True)))
        pooled = F.avg_pool3d(features, extents, stride=1)
        logits: Tensor = self.Logits(self.dropout(pooled))
        return logits.mean(dim=(3, 4))

    def endpoint(self, x: Tensor, name: str) -> Tensor:
        """The activation of a named endpoint; nothing after it is computed.

        Args:
            x: as for `forward`.
            name: one of `I3D.ENDPOINTS`.

        Returns:
            [B, C, T', H', W'].

        Raises:
            ValueError: if there is no such endpoint, and as `forward`.
        """
        if name not in self.ENDPOINTS:
            raise ValueError(f"no endpoint {name!r}; there are {', '.join(self.ENDPOINTS)}")
        self._check_input(x)
        return self._through(x, self.ENDPOINTS[: self.ENDPOINTS.index(name) + 1])

    def _check_input(self, x: Tensor) -> None:
        check_input(
            x,
            self.streams[0],
            "I3D",
            minimum_frames=MINIMUM_FRAMES,
            minimum_side=MINIMUM_SIDE,
            check_values=self.checks_values and not self.training,
        )
