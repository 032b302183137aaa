"""
Trainings to interrupt: each is learned in one go, and in two halves of which the second is in another process, and ends with
the same bits: ``python -m benchmarks.reliability.resumes``.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import os
import pickle
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_bn_ddpg import BNDDPG, BNSAC, BNTD3, CROSSQ, XQC, CheckpointEvery, OrnsteinUhlenbeckNoise
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.pixels.dm_control import import_suite

SMALL = dict(net_arch=[16, 12])
PENDULUM = "Pendulum-v1"


class ClosedEnv(PendulumEnv):
    """An environment whose state is not known: it may have added to that of the class it inherits from."""


class DictPendulum(gym.ObservationWrapper):
    """Angle and speed apart."""

    def __init__(self) -> None:
        super().__init__(gym.make(PENDULUM))
        low, high = self.env.observation_space.low, self.env.observation_space.high
        self.observation_space = gym.spaces.Dict(
            angle=gym.spaces.Box(low[:2], high[:2]), speed=gym.spaces.Box(low[2:], high[2:])
        )

    def get_checkpoint_state(self) -> None:
        """It has no state of its own."""

    def set_checkpoint_state(self, state: None) -> None:
        """Nothing to set."""

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return dict(angle=observation[:2], speed=observation[2:])


class Training(NamedTuple):
    """A training: its environment, and arguments of the model beside small ones."""

    make_env: Callable[[], Any]
    arguments: dict[str, Any]
    policy: str = "MlpPolicy"
    half: int = 150
    """Steps until the interruption, and from it to the end: in the middle of an episode"""
    resumes_alone: bool = True
    """Whether the environment can be made anew from its id"""
    waits: bool = False
    """Whether it is interrupted at an episode's end"""
    algorithm: type[BNOffPolicyAlgorithm] = BNDDPG

    def model(self) -> BNOffPolicyAlgorithm:
        arguments = dict(
            learning_starts=50, buffer_size=1000, batch_size=16, learning_rate=1e-3, seed=3, device="cpu", policy_kwargs=SMALL
        )
        return self.algorithm(self.policy, self.make_env(), **(arguments | self.arguments))


def _envs(n: int, env: Any = PENDULUM, **kwargs: Any) -> Callable[[], Any]:
    return lambda: make_vec_env(env, n_envs=n, **kwargs)


TRAININGS = {
    "MlpPolicy": Training(lambda: PENDULUM, {}),
    "MlpPolicy by autograd": Training(lambda: PENDULUM, dict(fast_update=False)),
    "three environments": Training(_envs(3), dict(gradient_steps=-1)),
    "three environments by autograd": Training(_envs(3), dict(gradient_steps=-1, fast_update=False)),
    "three worker processes": Training(_envs(3, vec_env_cls=SubprocVecEnv), dict(gradient_steps=-1)),
    "n-step": Training(lambda: PENDULUM, dict(n_steps=3, n_steps_final=1)),
    "n-step by autograd": Training(lambda: PENDULUM, dict(n_steps=3, fast_update=False)),
    "OU noise with a schedule": Training(
        lambda: PENDULUM,
        dict(
            action_noise=OrnsteinUhlenbeckNoise(np.zeros(1), sigma=LinearSchedule(0.5, 0.1, 1.0)),
            learning_rate=LinearSchedule(1e-3, 1e-4, 1.0),
        ),
    ),
    "OU noise with a schedule by autograd": Training(
        lambda: PENDULUM,
        dict(action_noise=OrnsteinUhlenbeckNoise(np.zeros(1), sigma=LinearSchedule(0.5, 0.1, 1.0)), fast_update=False),
    ),
    "a full replay buffer": Training(lambda: PENDULUM, dict(buffer_size=100)),
    "no target networks": Training(lambda: PENDULUM, dict(use_target_networks=False, target_statistics="running")),
    "batch renorm and AdamW": Training(
        lambda: PENDULUM, dict(policy_kwargs=dict(SMALL, normalization="batch_renorm", optimizer_class=th.optim.AdamW))
    ),
    "one rollout an episode": Training(lambda: PENDULUM, dict(train_freq=(1, "episode"), gradient_steps=20), half=200),
    "memory-optimised replay buffer": Training(
        lambda: PENDULUM,
        dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False), buffer_size=220),
    ),
    "SB3's white noise": Training(lambda: PENDULUM, dict(action_noise=NormalActionNoise(np.zeros(1), np.ones(1) * 0.2))),
    "SB3's OU noise, two environments": Training(
        _envs(2), dict(action_noise=OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1) * 0.2))
    ),
    "VecNormalize and VecFrameStack": Training(lambda: VecNormalize(VecFrameStack(_envs(2)(), 3)), {}),
    "dictionaries": Training(_envs(2, DictPendulum), {}, policy="MultiInputPolicy", resumes_alone=False),
    "hindsight experience replay": Training(
        lambda: BitFlippingEnv(n_bits=4, continuous=True),
        dict(replay_buffer_class=HerReplayBuffer),
        policy="MultiInputPolicy",
        resumes_alone=False,
    ),
    "an environment that hides its state": Training(
        lambda: TimeLimit(ClosedEnv(), 60), {}, half=180, resumes_alone=False, waits=True
    ),
    # In the middle of the delay: 101 updates were made
    "TD3": Training(lambda: PENDULUM, {}, half=151, algorithm=BNTD3),
    "TD3 by autograd": Training(lambda: PENDULUM, dict(fast_update=False, policy_delay=3), algorithm=BNTD3),
    "TD3, three environments": Training(_envs(3), dict(gradient_steps=1, actor_loss_critics="smallest"), algorithm=BNTD3),
    "TD3, hindsight experience replay": Training(
        lambda: BitFlippingEnv(n_bits=4, continuous=True),
        dict(replay_buffer_class=HerReplayBuffer),
        policy="MultiInputPolicy",
        resumes_alone=False,
        algorithm=BNTD3,
    ),
    "TD3, atoms and scaled rewards, three environments": Training(
        _envs(3),
        dict(gradient_steps=1, n_steps=3, reward_scaling="return_std", policy_kwargs=dict(SMALL, n_atoms=21)),
        algorithm=BNTD3,
    ),
    "SAC": Training(lambda: PENDULUM, {}, algorithm=BNSAC),
    "SAC by autograd": Training(lambda: PENDULUM, dict(fast_update=False, target_update_interval=3), algorithm=BNSAC),
    "SAC, three environments, a fixed entropy coefficient": Training(_envs(3), dict(ent_coef=0.1), algorithm=BNSAC),
    "CrossQ": Training(
        lambda: PENDULUM,
        CROSSQ | dict(policy_kwargs=CROSSQ["policy_kwargs"] | SMALL | dict(renorm_warmup_steps=20)),
        half=151,
        algorithm=BNSAC,
    ),
    "XQC": Training(
        lambda: PENDULUM,
        XQC | dict(policy_kwargs=XQC["policy_kwargs"] | SMALL, learning_starts=50),
        half=151,
        algorithm=BNSAC,
    ),
}
if importlib.util.find_spec("mujoco"):
    TRAININGS["MuJoCo"] = Training(_envs(2, "HalfCheetah-v5"), {})
if importlib.util.find_spec("dm_control") and importlib.util.find_spec("shimmy"):
    import_suite()
    TRAININGS["DeepMind Control Suite"] = Training(
        lambda: gym.wrappers.FlattenObservation(gym.make("dm_control/pendulum-swingup-v0")), {}, half=80
    )


class Interrupted(Exception):
    """Stands in for a kill: nothing is done any more."""


class InterruptAt(BaseCallback):
    """Ends the training in the middle of a step, some steps after the last checkpoint."""

    def __init__(self, at_step: int) -> None:
        super().__init__()
        self.at_step = at_step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at_step:
            raise Interrupted
        return True


def interrupt(training: Training, checkpoint: Path) -> None:
    """Learn until shortly after the middle, with a checkpoint in the middle."""
    model = training.model()
    with contextlib.suppress(Interrupted):
        model.learn(2 * training.half, [CheckpointEvery(training.half, checkpoint), InterruptAt(training.half + 10)])


def whole(training: Training, folder: Path) -> BNOffPolicyAlgorithm:
    """Learn it in one go. Only where checkpoints wait for an episode's end do they take part in the training."""
    callback = CheckpointEvery(training.half, folder / "whole") if training.waits else None
    return training.model().learn(2 * training.half, callback)


def resumed(training: Training, checkpoint: Path) -> BNOffPolicyAlgorithm:
    """Learn the second half."""
    env = None if training.resumes_alone else training.make_env()
    model = training.algorithm.resume(checkpoint, env, device="cpu")
    assert model.num_timesteps == training.half
    callback = CheckpointEvery(training.half, checkpoint.with_suffix(".end")) if training.waits else None
    return model.learn(model.remaining_timesteps, callback, reset_num_timesteps=False)


def fingerprint(model: BNOffPolicyAlgorithm) -> dict[str, str]:
    """A digest of each thing that must be equal to the bit."""
    things: dict[str, Any] = dict(model.policy.state_dict())
    for name in ("actor", "critic"):
        state = getattr(model, name).optimizer.state_dict()
        things[f"{name} groups"] = repr(state["param_groups"])
        for index, moments in state["state"].items():
            things |= {f"{name} {index} {key}": value for key, value in moments.items()}
    if isinstance(model, BNSAC):
        things["log_ent_coef"] = model.entropy_coefficient.log_ent_coef
        for moments in model.entropy_coefficient.optimizer.state_dict()["state"].values():
            things |= {f"log_ent_coef {key}": value for key, value in moments.items()}
    for key, value in vars(model.replay_buffer).items():
        if isinstance(value, dict) and all(isinstance(entry, np.ndarray) for entry in value.values()):
            things |= {f"buffer {key} {name}": entry for name, entry in value.items()}
        elif isinstance(value, (np.ndarray, int, bool)):
            things[f"buffer {key}"] = value
    noise: Any = model.action_noise
    things["noise"] = getattr(noise, "noise_prev", None)
    things["noise's generator"] = noise._rng.bit_generator.state if hasattr(noise, "_rng") else None
    things["SB3's noises"] = [getattr(each, "noise_prev", None) for each in getattr(noise, "noises", [])]
    things["python"], things["numpy"], things["torch"] = random.getstate(), np.random.get_state(), th.get_rng_state()
    things["action space"] = model.action_space.np_random.bit_generator.state
    if not isinstance(model.replay_buffer, HerReplayBuffer):  # SB3's goal environment draws from a space's generator
        things["environments"] = [_generator_state(generator) for generator in model.env.get_attr("np_random")]
    things["last observation"] = model._last_obs
    things["episodes"] = [(info["r"], info["l"]) for info in model.ep_info_buffer]
    things["reward scaler"] = [] if model.reward_scaler is None else [*vars(model.reward_scaler).items()]
    for name in ("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining"):
        things[name] = getattr(model, name)
    if model._vec_normalize_env is not None:
        things["VecNormalize"] = [
            (rms.mean, rms.var, rms.count) for rms in (model._vec_normalize_env.obs_rms, model._vec_normalize_env.ret_rms)
        ]
    return {name: _digest(thing) for name, thing in things.items()}


def _generator_state(generator: Any) -> Any:
    """NumPy's generators, and the older ones that the DeepMind Control Suite has."""
    is_old = isinstance(generator, np.random.RandomState)
    return generator.get_state() if is_old else generator.bit_generator.state


def _digest(thing: Any) -> str:
    if isinstance(thing, th.Tensor):
        thing = thing.detach().numpy()
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        content = np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, (list, tuple)):
        content = "".join(map(_digest, thing)).encode()
    elif isinstance(thing, dict):
        content = "".join(f"{key}{_digest(value)}" for key, value in thing.items()).encode()
    else:
        content = repr(thing).encode()
    return hashlib.sha256(content).hexdigest()


def resume_in_another_process(folder: Path, names: Collection[str]) -> dict[str, dict[str, str]]:
    """
    Interrupt trainings here, and resume them in another process.

    :param folder: Where to put the checkpoints
    :param names: The trainings
    :return: For each of them its fingerprint at the end, or an error
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            interrupt(TRAININGS[name], folder / name)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.reliability.resumes", "--second-half-in", str(folder)]
    subprocess.run(command, check=True, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"})
    results: dict[str, dict[str, str]] = pickle.loads((folder / "results").read_bytes())
    return results


def second_halves(folder: Path) -> None:
    """Resume each training of which there is a checkpoint."""
    results = {}
    for name, training in TRAININGS.items():
        if (folder / name).exists():
            try:
                results[name] = fingerprint(resumed(training, folder / name))
            except Exception as error:
                results[name] = {"error": repr(error)}
    (folder / "results").write_bytes(pickle.dumps(results))


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--second-half-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    if options.second_half_in is not None:
        second_halves(options.second_half_in)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = resume_in_another_process(folder, TRAININGS)
        n_equal = 0
        for name, training in TRAININGS.items():
            expected = fingerprint(whole(training, folder))
            differences = [thing for thing, value in expected.items() if results[name].get(thing) != value]
            n_equal += not differences
            print(f"{name}: {len(expected)} things " + (f"differ in {differences}" if differences else "equal to the bit"))
        print(f"{n_equal} of {len(TRAININGS)} resumed trainings are equal to the uninterrupted ones")
    sys.exit(n_equal < len(TRAININGS))


if __name__ == "__main__":
    # A checkpoint names the classes of wrappers: those of this file must not be called `__main__` in one process only
    from benchmarks.reliability import resumes

    resumes.main()
