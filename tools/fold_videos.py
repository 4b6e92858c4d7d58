"""Divide training videos into folds by where they were filmed, so that recipes are chosen without the test videos.

    python tools/fold_videos.py data/arid6/train runs/arid6_folds --folds 2
    s4nd train configs/arid6/s4nd_convnext3d_micro.yaml data.root=runs/arid6_folds/0

TRAIN/CLASS/SOURCE_NUMBER.mp4 becomes OUT/FOLD/{train,val}/CLASS/SOURCE_NUMBER.mp4, copies. Clips of one source show the same
people in the same place, so they are never on both sides. In each class a source, the largest first, goes to the fold that has
the fewest clips so far; fold i is the val of OUT/i, and all others are its train.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path


def folds_of(files: Sequence[Path], folds: int) -> list[list[Path]]:
    """The files of one class, divided by source.

    Raises:
        ValueError: there are fewer sources than folds.
    """
    sources: dict[str, list[Path]] = {}
    for file in sorted(files):
        sources.setdefault(file.stem.rpartition("_")[0], []).append(file)
    if len(sources) < folds:
        raise ValueError(f"{folds} folds need as many sources in each class, got {sorted(sources)}")
    divided: list[list[Path]] = [[] for _ in range(folds)]
    for clips in sorted(sources.values(), key=len, reverse=True):
        min(divided, key=len).extend(clips)
    return divided


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, metavar="TRAIN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--folds", type=int, default=2)
    args = parser.parse_args(argv)
    if args.folds < 2:
        parser.error(f"there must be at least 2 folds, got {args.folds}")
    classes = sorted(folder for folder in args.train.iterdir() if folder.is_dir()) if args.train.is_dir() else []
    if not classes:
        parser.error(f"{args.train} must hold a folder of videos for each class")
    if args.out.exists():
        parser.error(f"{args.out} exists already")
    try:
        divided = {
            folder.name: folds_of([f for f in folder.iterdir() if f.is_file()], args.folds) for folder in classes
        }
    except ValueError as error:
        parser.error(str(error))
    for fold in range(args.folds):
        for name, parts in divided.items():
            for i, files in enumerate(parts):
                folder = args.out / str(fold) / ("val" if i == fold else "train") / name
                folder.mkdir(parents=True, exist_ok=True)
                for file in files:
                    shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    main()
