"""Implicit Q-learning: its parameters and its gradient step."""

import math
from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_bn_ddpg.common.checks import check_choice, check_number
from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.datasets.dataset_buffer import RewardScaling
from sb3_bn_ddpg.datasets.transitions import Dataset
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.networks.critics import ValueNetwork
from sb3_bn_ddpg.networks.statistics import Statistics, StatisticsSync
from sb3_bn_ddpg.offline.base import BNOfflineAlgorithm
from sb3_bn_ddpg.offline.iql_engine_step import step_on_engine
from sb3_bn_ddpg.offline.iql_step import gradient_step
from sb3_bn_ddpg.offline.policies import BNIQLCnnPolicy, BNIQLPolicy


class BNIQL(BNOfflineAlgorithm):
    """
    Implicit Q-learning (IQL, `Offline Reinforcement Learning with Implicit Q-Learning <https://arxiv.org/abs/2110.06169>`_): a
    value function that is fitted to an expectile of Q, so that no critic is ever asked for the value of an action that is not
    in the data, and an actor that imitates the data's actions, weighted by their advantage.

    The default values are those of the authors' code for the MuJoCo tasks. By default nothing is batch-normalised, as there.

    :param policy: The policy model to use: ``"MlpPolicy"``, or ``"CnnPolicy"`` for images
    :param env: The environment, which gives the spaces and is for evaluation (if registered in Gym, can be str). None where
        the dataset knows its spaces, as those of Minari and replay buffers do.
    :param dataset: What it learns from: a ``minari.MinariDataset`` or its id (extra ``offline``), an SB3 ``ReplayBuffer`` or
        the path of a saved one, a dictionary of arrays, or the path of an ``.npz`` file of arrays: ``observations``,
        ``actions``, ``rewards``, ``next_observations``, ``terminations`` and, if there are any, ``truncations``. An episode
        that was cut off has not ended. None for a model that only predicts.
    :param learning_rate: Learning rate (>= 0), a number or a function of the progress remaining (from 1 to 0)
    :param batch_size: Minibatch size for each gradient update (>= 1, with batch norm >= 2)
    :param tau: The soft update coefficient ("Polyak update", in [0, 1])
    :param gamma: The discount factor, in [0, 1]
    :param expectile: Which expectile of Q the value function is fitted to, in (0, 1): 0.5 is the mean, near 1 the largest
    :param beta: Inverse temperature of the weights exp(beta A) (>= 0): 0 imitates all actions alike
    :param weight_limit: Largest weight (> 0)
    :param actor_learning_rate_decay: ``"cosine"`` lets the actor's learning rate fall to 0 along half a cosine over the steps
        of ``learn`` (or ``schedule_timesteps``); None leaves it as it is
    :param reward_scaling: What rewards are multiplied by: ``"return_range"`` is 1000 / (largest - smallest return of an
        episode), a number > 0 is that, None leaves them as they are
    :param critic_learning_rate: Learning rate of the critics and of the value function (>= 0), a number or a schedule (if
        None: ``learning_rate``)
    :param critic_weight_decay: L2 weight decay of the critics' weights (>= 0)
    :param fast_update: Whether to calculate the gradient steps by hand-derived formulas, where that is possible: linear layers
        with ReLU, batch norm, batch renorm, layer norm or none, Adam. The numbers are the same but for rounding; False always
        uses autograd. ``"compiled"`` does so in code compiled by Numba, for the CPU (extra ``compiled``): the faster one for
        minibatches up to some hundred, after 20 seconds of compiling in the first run on a machine. On a GPU, either is a
        CUDA graph.
    :param target_statistics: Batch-norm statistics of passes whose output is only a target: ``"running"``, ``"batch"``,
        ``"running_update"`` or ``"batch_update"``, where ``_update`` also updates the running ones from this pass (see
        :data:`~sb3_bn_ddpg.networks.statistics.Statistics`)
    :param target_statistics_sync: How running statistics reach the target networks: ``"copy"`` after every update,
        ``"polyak"`` by ``tau``, or None (only with a ``target_statistics`` other than ``"running"``)
    :param critic_loss_statistics: Batch-norm statistics of the critics and of the value function in their loss:
        ``"batch_update"`` or ``"running_update"``
    :param actor_loss_actor_statistics: Batch-norm statistics of the actor in its loss: ``"batch_update"`` or
        ``"running_update"``
    :param stats_window_size: Number of episodes that logged means are taken over, once it acts in its environment
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation:
        see :class:`~sb3_bn_ddpg.offline.policies.BNIQLPolicy`. ``dict(normalization="batch")`` puts batch norm into all
        networks, ``"layer"`` layer norm.
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of its range, the action space is not a bounded ``Box``, or the dataset does not
        fit the environment
    """

    policy: BNIQLPolicy
    expectile: float
    beta: float
    weight_limit: float
    actor_learning_rate_decay: Literal["cosine"] | None

    action_limit: ClassVar[float] = 1 - 1e-5
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": BNIQLPolicy, "CnnPolicy": BNIQLCnnPolicy}

    def __init__(
        self,
        policy: str | type[BNIQLPolicy],
        env: GymEnv | str | None,
        dataset: Dataset = None,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        expectile: float = 0.7,
        beta: float = 3.0,
        weight_limit: float = 100.0,
        actor_learning_rate_decay: Literal["cosine"] | None = "cosine",
        reward_scaling: RewardScaling = "return_range",
        critic_learning_rate: float | Schedule | None = None,
        critic_weight_decay: float = 0.0,
        fast_update: bool | Literal["compiled"] = True,
        target_statistics: Statistics = "batch",
        target_statistics_sync: StatisticsSync | None = "copy",
        critic_loss_statistics: Statistics = "batch_update",
        actor_loss_actor_statistics: Statistics = "batch_update",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(**arguments)

    @property
    def value(self) -> ValueNetwork:
        """The value function."""
        return self.policy.value

    def _check_arguments(self) -> None:
        super()._check_arguments()
        self._refuse_joint_pass()
        check_number("expectile", self.expectile, low=0, low_open=True, high=1)
        if self.expectile == 1:
            raise ValueError(f"`expectile={self.expectile!r}` is not allowed: it must be a finite number > 0 and < 1")
        check_number("beta", self.beta, low=0)
        check_number("weight_limit", self.weight_limit, low=0, low_open=True)
        check_choice("actor_learning_rate_decay", self.actor_learning_rate_decay, ("cosine", None))

    def _auxiliary_network(self) -> ValueNetwork:
        return self.value

    def _update_optimizers(self) -> None:
        super()._update_optimizers()
        progress = self._current_progress_remaining
        if self.actor_learning_rate_decay == "cosine":
            rate = self.lr_schedule(progress) * 0.5 * (1 + math.cos(math.pi * (1 - progress)))
            update_learning_rate(self.actor.optimizer, rate)
        update_learning_rate(self.value.optimizer, self.critic_lr_schedule(progress))

    def _defined_step(self, batch: Batch, update_actor: bool, noise: th.Tensor | None) -> UpdateInfo:
        return gradient_step(
            self._networks,
            batch,
            self.gamma,
            self.tau,
            self._pass_statistics,
            self.expectile,
            self.beta,
            self.weight_limit,
            update_actor,
        )

    def _step_on_engine(self) -> EngineStep:
        return step_on_engine(self._pass_statistics, float(self.expectile), float(self.beta), float(self.weight_limit))

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "value.optimizer"], tensors
