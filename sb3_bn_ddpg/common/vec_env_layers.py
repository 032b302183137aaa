"""The layers of a vectorised environment."""

from typing import Any

from stable_baselines3.common.vec_env import VecEnvWrapper


def layers_of(env: Any) -> list[Any]:
    """
    :param env: A vectorised environment, or None
    :return: Its wrappers, outermost first, and last what they wrap, which may be no ``VecEnv`` at all
    """
    layers = [env]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers
