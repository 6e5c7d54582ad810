"""gymnasium's RecordVideo on single environments and on native lanes; needs the extra `video`."""

import gymnasium
import numpy as np
import pytest

moviepy = pytest.importorskip("moviepy")

ARGUMENTS = {"requests": 6, "max_episode_steps": 12, "render_mode": "rgb_array"}


def frames(path):
    """What a film shows, uint8 [frames, height, width, 3]."""
    with moviepy.VideoFileClip(str(path)) as film:
        return np.stack(list(film.iter_frames())), film.fps


def test_an_episode_is_a_film(tmp_path):
    env = gymnasium.make("llmgym:llmgym/KVQueue-v1", **ARGUMENTS)
    env = gymnasium.wrappers.RecordVideo(env, tmp_path, disable_logger=True)
    env.reset(seed=0)
    pictures, ended = [env.render()], False
    while not ended:
        *_, terminated, truncated, _ = env.step(0)
        ended = terminated or truncated
        pictures.append(env.render())
    env.close()
    (path,) = tmp_path.glob("*.mp4")
    shown, fps = frames(path)
    assert fps == env.metadata["render_fps"] and abs(len(shown) - len(pictures)) <= 1
    assert shown[0].shape == pictures[0].shape
    # a film is compressed; each frame is still the picture that it was made of, and not one of another moment
    differences = [np.abs(shown[0].astype(int) - picture).mean() for picture in (pictures[0], pictures[-1])]
    assert differences[0] < 4.0 and differences[0] < differences[1]


def test_lanes_are_tiles_of_a_film(tmp_path):
    envs = gymnasium.make_vec("llmgym:llmgym/KVQueue-v1", 4, **ARGUMENTS)
    assert len(envs.reset(seed=0)) == 2 and len(envs.render()) == 4
    single = envs.render()[0].shape
    envs = gymnasium.wrappers.vector.RecordVideo(
        envs, str(tmp_path), video_aspect_ratio=(1, 1), disable_logger=True
    )
    envs.reset(seed=0)
    for _ in range(14):
        envs.step(np.zeros(4, int))
    envs.close()
    shown, _ = frames(next(tmp_path.glob("*.mp4")))
    assert shown.shape[1] >= 2 * single[0] and shown.shape[2] >= 2 * single[1]
