"""A video model frame by frame, with a state of constant size, as the file decodes.

    python examples/stream_video.py --out runs/examples

film.mp4 is a view that moves over a photograph. A causal model sees its frames one after the other; its answer is that of the
whole model to all frames so far, which is computed beside it. Its weights are as drawn: what the answers are is without
meaning, that they are the same is not. A model that `s4nd train` made runs so by `s4nd watch`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import av
    from skimage import data
except ImportError as error:
    sys.exit(f'{error}: pip install "s4nd[examples]"')

import timm
import torch
from torch import Tensor

import s4nd.models

SIZE, FRAMES, RATE = 64, 48, 12  # RATE frames a second


def write_film(path: Path) -> None:
    picture = data.astronaut()
    with av.open(path, "w") as file:
        video = file.add_stream("mpeg4", rate=RATE, width=SIZE, height=SIZE, pix_fmt="yuv420p")
        for t in range(FRAMES):
            view = picture[5 * t : 5 * t + SIZE, 9 * t : 9 * t + SIZE]
            file.mux(video.encode(av.VideoFrame.from_ndarray(view.copy(), format="rgb24")))
        file.mux(video.encode())


def read_film(path: Path) -> Iterator[Tensor]:
    """Frames (1, 3, height, width) from -1 to 1."""
    with av.open(path) as file:
        for frame in file.decode(video=0):
            yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None] / 127.5 - 1


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="folder for what is written")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write_film(out / "film.mp4")
    torch.manual_seed(0)
    small = dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), num_classes=6)
    model = timm.create_model("s4nd_convnext3d_micro", img_size=SIZE, causal=True, num_frames=0, **small).eval()
    stream, state, seen, first = s4nd.models.stream(model), None, [], None
    with s4nd.frozen(model):  # its weights stay: what follows from them is computed once
        for number, frame in enumerate(read_film(out / "film.mp4"), 1):
            logits, state = stream(frame, state)
            seen.append(frame)
            if number % RATE == 0:
                whole = model(torch.stack(seen, dim=2))
                first = logits if first is None else first
                error, change = ((logits - other).abs().max() / logits.abs().max() for other in (whole, first))
                numbers = sum(part.numel() for part in state.values())
                print(
                    f"{number / RATE:.0f} s: differs from the whole clip by {error:.1e} of the largest logit, "
                    f"from the answer at 1 s by {change:.1e}; a state of {numbers} numbers"
                )


if __name__ == "__main__":
    main()
