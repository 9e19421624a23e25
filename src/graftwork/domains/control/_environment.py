"""Rollouts in a Gymnasium environment, their returns, and a video of one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork.domains.control._acting import Actor
from graftwork.errors import InputError, MissingDependencyError, UnsupportedError

SCORES: Mapping[str, tuple[float, float]] = {
    "AdroitHandDoor-v1": (-56.51, 2880.57),
}
"""Environment -> return of random actions and of an expert, after D4RL (Fu et al. 2020)."""

Frame = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What some episodes gave.

    Attributes:
        returns: sum of rewards of each episode.
        successes: whether the environment called an episode a success; all False where it says
            nothing.
        frames: pictures `(H, W, 3)` of the first episode, where wanted.
    """

    returns: tuple[float, ...]
    successes: tuple[bool, ...]
    frames: Sequence[Frame] = ()


def make_environment(name: str, *, horizon: int | None = None, pictures: bool = False) -> Any:
    """Return a Gymnasium environment.

    Args:
        name: of the environment, e.g. "AdroitHandDoor-v1".
        horizon: steps of an episode; None takes the environment's own.
        pictures: whether it can render. Without a display MuJoCo then draws off screen by EGL
            unless the environment variable MUJOCO_GL says otherwise ("osmesa" needs no driver).

    Raises:
        MissingDependencyError: Gymnasium or the Adroit environments are not installed.
        InputError: no such environment.
    """
    if pictures and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import gymnasium
    except ImportError as error:
        raise MissingDependencyError("gymnasium", "control", "an environment") from error
    if name.startswith("Adroit"):
        try:
            import gymnasium_robotics
        except ImportError as error:
            raise MissingDependencyError("gymnasium-robotics", "control", f"{name!r}") from error
        gymnasium.register_envs(gymnasium_robotics)
    options: dict[str, Any] = {} if horizon is None else {"max_episode_steps": horizon}
    if pictures:
        options["render_mode"] = "rgb_array"
    try:
        return gymnasium.make(name, **options)
    except gymnasium.error.Error as error:
        raise InputError(f"no environment {name!r} ({error})") from error


def rollout(
    environment: Any, act: Actor, *, episodes: int = 1, seed: int = 0, pictures: int = 0
) -> Rollouts:
    """Act in `environment` for some episodes.

    Args:
        environment: of the Gymnasium interface, with one array as observation.
        act: chooses actions; they are clipped to the environment's box.
        episodes: episode i begins with seed `seed + i`.
        seed: of the environment.
        pictures: the first episode is drawn every that many steps; 0 draws nothing. Without a
            graphics card a picture takes far longer than a step.

    Raises:
        InputError: an action of another shape than the environment's, or it cannot draw itself.
    """
    box = environment.action_space
    returns, successes, frames = [], [], []
    for episode in range(episodes):
        observation, _ = environment.reset(seed=seed + episode)
        total, success, done, step = 0.0, False, False, 0
        while not done:
            if pictures and episode == 0 and step % pictures == 0:
                frames.append(_picture(environment))
            action = np.asarray(act(observation))
            if action.shape != box.shape:
                raise InputError(
                    f"the policy gives actions of shape {action.shape}, the environment wants "
                    f"{box.shape}"
                )
            observation, reward, ended, cut, info = environment.step(
                np.clip(action, box.low, box.high)
            )
            total, step = total + float(reward), step + 1
            success = success or bool(info.get("success", False))
            done = bool(ended or cut)
        returns.append(total)
        successes.append(success)
    return Rollouts(tuple(returns), tuple(successes), frames)


def _picture(environment: Any) -> Frame:
    try:
        return np.asarray(environment.render(), dtype=np.uint8)
    except (RuntimeError, ImportError, OSError) as error:
        raise InputError(
            f"the environment cannot draw itself ({error}); without a screen MuJoCo wants "
            "MUJOCO_GL=egl or MUJOCO_GL=osmesa, and the library it names"
        ) from error


def normalised(name: str, value: float) -> float:
    """Return a return in percent of the way from random actions to an expert, as D4RL does.

    Raises:
        UnsupportedError: the two ends are not known for this environment.

    Example:
        >>> round(normalised("AdroitHandDoor-v1", -56.51), 3)
        0.0
        >>> round(normalised("AdroitHandDoor-v1", 825.0), 1)
        30.0
    """
    if name not in SCORES:
        raise UnsupportedError(f"no reference returns for {name!r}; known: {sorted(SCORES)}")
    low, high = SCORES[name]
    return 100.0 * (value - low) / (high - low)


def write_video(frames: Sequence[Frame], path: str | Path, *, rate: int = 25) -> Path:
    """Write pictures as a film: `.gif`, or `.mp4` and other formats of ffmpeg.

    Args:
        frames: `(H, W, 3)` each.
        path: of the film; its ending says the format.
        rate: pictures a second.

    Raises:
        InputError: no pictures.
        MissingDependencyError: imageio is not installed.
    """
    if not len(frames):
        raise InputError("no pictures to write; roll out with pictures=1")
    try:
        import imageio.v3 as imageio
    except ImportError as error:
        raise MissingDependencyError("imageio", "control", "writing a video") from error
    file = Path(path)
    stack = np.stack(list(frames))
    if file.suffix == ".gif":
        imageio.imwrite(file, stack, duration=1000 / rate, loop=0)
    else:
        imageio.imwrite(file, stack, fps=rate)
    return file
