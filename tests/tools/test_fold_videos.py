"""Folds of videos against what the tool's help promises."""

import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fold_videos.py"
CLIPS = {"Jump": {"a": 3, "b": 2}, "Sit": {"a": 1, "b": 4, "c": 2}}


@pytest.fixture
def main():
    return runpy.run_path(str(TOOL), run_name="tool")["main"]


@pytest.fixture
def videos(tmp_path) -> Path:
    """train/CLASS/CLASS_SOURCE_NUMBER.mp4, each of bytes of its own."""
    for name, sources in CLIPS.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for source, count in sources.items():
            for i in range(count):
                (tmp_path / "train" / name / f"{name}_{source}_{i}.mp4").write_text(f"{name} {source} {i}")
    return tmp_path / "train"


def files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.rglob("*.mp4")}


def test_every_video_judges_once_and_no_source_is_on_both_sides(main, videos, tmp_path):
    out = tmp_path / "out"
    main([str(videos), str(out), "--folds", "2"])
    judged = {}
    for fold in ("0", "1"):
        train, val = files(out / fold / "train"), files(out / fold / "val")
        assert train | val == files(videos)
        sources = [{name.rpartition("_")[0] for name in part} for part in (train, val)]
        assert not sources[0] & sources[1]
        assert not judged.keys() & val.keys()
        judged |= val
        for name in CLIPS:  # every class is on both sides
            assert list((out / fold / "train" / name).iterdir())
            assert list((out / fold / "val" / name).iterdir())
    assert judged == files(videos)


def test_sources_are_shared_out_evenly(main, videos, tmp_path):
    main([str(videos), str(tmp_path / "out")])
    assert [len(files(tmp_path / "out" / fold / "val" / "Sit")) for fold in ("0", "1")] == [4, 3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{train}", "{new}", "--folds", "3"], "3 folds need as many sources in each class, got ['Jump_a', 'Jump_b']"),
        (["{train}", "{new}", "--folds", "1"], "at least 2 folds, got 1"),
        (["{train}", "{train}"], "exists already"),
        (["{new}", "{new}"], "must hold a folder of videos for each class"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_written(main, videos, tmp_path, capsys, arguments, said):
    new = tmp_path / "new"
    with pytest.raises(SystemExit):
        main([a.format(train=videos, new=new) for a in arguments])
    assert said in capsys.readouterr().err
    assert not new.exists()
