"""Blocks of any order and a stop in time, against what all pictures together give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smooth.config import EvaluateConfig
from smooth.evaluate import istd
from smooth.evaluate.networks import Network
from smooth.evaluate.protocol import Protocol
from smooth.evaluate.running import Running
from smooth.evaluate.sampling import LOOK_EVERY, Sampling
from smooth.evaluate.worker import Block, Model
from tests.protocols import protocol

FRAMES, SIZE = 5, 8


def interpolations(prompts: int, uneven: float, seed: int = 0) -> Any:
    """(P, F, 4, 4, 3) uint8 of random steps, whose lengths vary by the share ``uneven`` from prompt to prompt."""
    rng = np.random.default_rng(seed)
    spread = 1 + uneven * rng.uniform(-1, 1, (prompts, 1, 1, 1, 1))
    return (128 + 60 * spread * rng.uniform(-1, 1, (prompts, FRAMES, 4, 4, 3))).clip(0, 255).astype(np.uint8)


def of(prompts: int, networks: str = "a") -> Protocol:
    return protocol(
        prompts=tuple(f"prompt {number}" for number in range(prompts)),
        picture_prompts=("a", "b", "c"),
        frames=FRAMES,
        strips=2,
        seed=0,
        networks=tuple(Network("efficientnet", name, {}, name, {}) for name in networks),
    )


class Actor:
    """Gives the blocks of known pictures; a network's feature is the pictures' mean and its own number."""

    def __init__(self, frames: dict[Model, Any]) -> None:
        self._frames = {model: pictures.reshape(-1, 4, 4, 3) for model, pictures in frames.items()}
        self.painted: list[tuple[Model, Block]] = []
        self.judged: list[tuple[Model, Block, tuple[int, ...]]] = []

    @property
    def result(self) -> Any:
        return self

    def remote(self, model: Model, block: Block, networks: tuple[int, ...], kept: Any) -> Any:
        part = slice(block.start, block.stop)
        if block.kind == "paths":
            self.painted.append((model, block))
            return model, block, None, [np.arange(block.start, block.stop) + 100.0 * number for number in networks]
        pictures = self._frames[model][part] if block.kind == "frames" else np.full((3, 4, 4, 3), 7, np.uint8)[part]
        if kept is None:
            self.painted.append((model, block))
        else:
            np.testing.assert_array_equal(kept, pictures)
        self.judged += [(model, block, networks)] if networks else []
        features = [np.full((len(pictures), 2), number, np.float32) for number in networks]
        return model, block, pictures if kept is None else None, features


class Painters(Actor):
    """A pool of one actor that takes the last first."""

    def map_unordered(self, call: Any, values: list[Any]) -> Iterator[Any]:
        for value in reversed(values):
            yield call(self, value)


def sampling(root: Path, prompts: int, networks: str = "a") -> Sampling:
    return Sampling(of(prompts, networks), {"base": str(root / "base"), "smooth": str(root / "smooth")}, SIZE)


def test_blocks_that_cut_across_interpolations_give_what_all_pictures_give(tmp_path: Path) -> None:
    frames: dict[Model, Any] = {"base": interpolations(7, 0.5), "smooth": interpolations(7, 0.5, seed=1)}
    painters = Painters(frames)
    sampled = sampling(tmp_path, 7)
    assert sampled.run(lambda: painters, None) == 7
    assert sampled.sampled == 2 * (7 * FRAMES + 3)
    for model, pictures in frames.items():
        found = sampled.measurement(model, 7)
        assert np.array_equal(found.distances, istd.neighbour_distances(pictures))
        assert np.array_equal(found.strips, pictures[:2])
        assert [features.shape for features in found.features] == [(3, 2)]


def test_what_is_there_is_not_painted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    painters = Painters({"base": interpolations(7, 0.5), "smooth": interpolations(7, 0.5)})
    sampling(tmp_path, 7).run(lambda: painters, None)
    (tmp_path / "smooth" / "frames-0000008-0000016.npy").unlink()
    painters.painted.clear()
    capsys.readouterr()
    sampling(tmp_path, 7).run(lambda: painters, None)
    assert painters.painted == [("smooth", Block("frames", 8, 16))]
    last = json.loads(capsys.readouterr().out.splitlines()[-1].partition(" ")[2])
    assert last["done"] == last["total"] == 2 * (7 * FRAMES + 3)
    assert last["facts"].keys() == {"ISTD base", "ISTD smooth"}


def test_another_network_judges_the_pictures_that_were_kept(tmp_path: Path) -> None:
    painters = Painters({"base": interpolations(7, 0.5), "smooth": interpolations(7, 0.5)})
    sampling(tmp_path, 7).run(lambda: painters, None)
    painters.painted.clear()
    painters.judged.clear()
    again = sampling(tmp_path, 7, "ab")
    again.run(lambda: painters, None)
    block = Block("pictures", 0, 3)
    assert (painters.painted, again.sampled) == ([], 0)
    assert painters.judged == [("smooth", block, (1,)), ("base", block, (1,))]
    one, other = again.measurement("base", 7).features
    assert (one == 0).all()
    assert (other == 1).all()
    painters.judged.clear()
    sampling(tmp_path, 7, "b").run(lambda: painters, None)
    assert painters.judged == []


def test_paths_are_measured_once_and_shared_by_evaluations_of_more_of_them(tmp_path: Path) -> None:
    """Four paths a block, as each has two pictures."""
    frames: dict[Model, Any] = {"base": interpolations(7, 0.5), "smooth": interpolations(7, 0.5)}
    painters = Painters(frames)
    folders: dict[Model, str] = {"base": str(tmp_path / "base"), "smooth": str(tmp_path / "smooth")}

    def painted(paths: int) -> tuple[list[Any], list[Any]]:
        painters.painted.clear()
        sampled = Sampling(replace(of(7), path_lengths=paths), folders, SIZE)
        sampled.run(lambda: painters, None)
        assert sampled.sampled == sum(block.pictures for _, block in painters.painted)
        return painters.painted, sampled.measurement("smooth", 7).path_lengths

    painted(0)
    blocks, lengths = painted(10)
    assert [block for model, block in blocks if model == "smooth"] == [
        Block("paths", 8, 10), Block("paths", 4, 8), Block("paths", 0, 4)
    ]  # fmt: skip
    assert [each.tolist() for each in lengths] == [list(range(10))]
    blocks, lengths = painted(12)
    assert {block for _, block in blocks} == {Block("paths", 8, 12)}
    assert [each.tolist() for each in lengths] == [list(range(12))]
    assert painted(12)[0] == []


def test_a_protocol_with_paths_shares_the_pictures_of_one_from_before_there_were_any() -> None:
    before = "08d05ee7d34b177a"
    assert {protocol().fingerprint, protocol(path_lengths=4).fingerprint} == {before}
    assert "path_lengths" not in EvaluateConfig().identity()
    assert EvaluateConfig(path_lengths=4).identity() == EvaluateConfig().identity() | {"path_lengths": 4}


def test_stops_at_the_first_look_where_both_intervals_are_tight_enough(tmp_path: Path) -> None:
    """Brute force: the looks one after the other, each on its first prompts."""
    frames: dict[Model, Any] = {"base": interpolations(200, 0.9), "smooth": interpolations(200, 0.1, seed=1)}

    def half_width(pictures: Any, prompts: int) -> float:
        found = istd.istd(pictures[:prompts]).istd
        return (found.high - found.low) / 2 / found.value

    looks = range(LOOK_EVERY, 200, LOOK_EVERY)
    expected = next(n for n in looks if all(half_width(pictures, n) <= 0.11 for pictures in frames.values()))
    assert LOOK_EVERY < expected < 180
    painters = Painters(frames)
    sampled = sampling(tmp_path, 200)
    assert sampled.run(lambda: painters, 0.11) == expected
    furthest = max(block.stop for _, block in painters.painted if block.kind == "frames")
    assert expected * FRAMES <= furthest < expected * FRAMES + SIZE
    assert np.array_equal(
        sampled.measurement("base", expected).distances, istd.neighbour_distances(frames["base"][:expected])
    )
    stopped = of(200).stopped(expected, 0.11)
    assert len(stopped.prompts) == expected
    assert stopped.interpolation_stamp["until_ci"] == 0.11
    assert of(200).stopped(200, 0.11) == of(200)


def test_estimate_while_frames_come_in_any_order() -> None:
    pictures = interpolations(3, 0.5)
    running = Running(FRAMES, seed=0)
    assert running.estimate() is None
    flat = pictures.reshape(-1, 4, 4, 3)
    order = np.random.default_rng(1).permutation(len(flat))
    for index in order:
        running.add(int(index), flat[index : index + 1])
    assert running.estimate() == istd.istd(pictures).istd
