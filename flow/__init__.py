"""Optical flow: TV-L1, its 8-bit coding, and its pictures.

flow = tvl1(frames)                       # [T, H, W] uint8 grey → [T − 1, H, W, 2] float32 pixels
stored = encode_flow(flow)                # H.264, 8 bits for ±20 px
picture = colour_code(flow[0])            # [H, W, 3] uint8
"""

from flow.coding import decode_flow_codes, dequantise, encode_flow, flow_pictures, quantise
from flow.colour import colour_code, colour_legend, film_strip
from flow.estimate import BackendUnavailable, fastest_backend, tvl1, tvl1_pairs
from flow.frames import decode_frames, plane_of
from flow.parameters import VARIANTS, TVL1Params

__all__ = [
    "VARIANTS",
    "BackendUnavailable",
    "TVL1Params",
    "colour_code",
    "colour_legend",
    "decode_flow_codes",
    "decode_frames",
    "dequantise",
    "encode_flow",
    "fastest_backend",
    "film_strip",
    "flow_pictures",
    "plane_of",
    "quantise",
    "tvl1",
    "tvl1_pairs",
]
