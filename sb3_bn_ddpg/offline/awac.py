"""AWAC: its parameters and its gradient step."""

from typing import Any, ClassVar, Literal, get_args

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_bn_ddpg.common.checks import check_choice, check_number
from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.datasets.dataset_buffer import RewardScaling
from sb3_bn_ddpg.datasets.transitions import Dataset
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.networks.statistics import Statistics, StatisticsSync
from sb3_bn_ddpg.offline.awac_engine_step import step_on_engine
from sb3_bn_ddpg.offline.awac_step import gradient_step
from sb3_bn_ddpg.offline.base import BNOfflineAlgorithm
from sb3_bn_ddpg.offline.losses import Weighting
from sb3_bn_ddpg.offline.policies import BNAWACCnnPolicy, BNAWACPolicy


class BNAWAC(BNOfflineAlgorithm):
    """
    Advantage-weighted actor-critic (AWAC, `Accelerating Online Reinforcement Learning with Offline Datasets
    <https://arxiv.org/abs/2006.09359>`_): critics of the policy, which imitates the data's actions weighted by how much better
    than its own actions they are.

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
    :param beta: Temperature of the weights exp(A / beta) (> 0)
    :param weighting: ``"softmax"`` makes weights whose mean over the minibatch is 1, as the authors' code does; ``"exp"``
        leaves them as they are, up to ``weight_limit``
    :param weight_limit: Largest weight of ``"exp"`` (> 0)
    :param reward_scaling: What rewards are multiplied by: a number > 0, ``"return_range"`` (1000 / (largest - smallest return
        of an episode)), or None
    :param critic_learning_rate: Learning rate of the critics (>= 0), a number or a schedule (if None: ``learning_rate``)
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
    :param critic_loss_statistics: Batch-norm statistics of the critics in their loss: ``"batch_update"`` or
        ``"running_update"``
    :param actor_loss_actor_statistics: Batch-norm statistics of the actor in its loss: ``"batch_update"`` or
        ``"running_update"``
    :param actor_loss_critic_statistics: Batch-norm statistics of the critics in the actor's loss: any of the four
    :param stats_window_size: Number of episodes that logged means are taken over, once it acts in its environment
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation:
        see :class:`~sb3_bn_ddpg.offline.policies.BNAWACPolicy`. ``dict(normalization="batch")`` puts batch norm into all
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

    policy: BNAWACPolicy
    beta: float
    weighting: Weighting
    weight_limit: float

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": BNAWACPolicy, "CnnPolicy": BNAWACCnnPolicy}

    def __init__(
        self,
        policy: str | type[BNAWACPolicy],
        env: GymEnv | str | None,
        dataset: Dataset = None,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int = 1024,
        tau: float = 0.005,
        gamma: float = 0.99,
        beta: float = 2.0,
        weighting: Weighting = "softmax",
        weight_limit: float = 100.0,
        reward_scaling: RewardScaling = None,
        critic_learning_rate: float | Schedule | None = None,
        critic_weight_decay: float = 0.0,
        fast_update: bool | Literal["compiled"] = True,
        target_statistics: Statistics = "batch",
        target_statistics_sync: StatisticsSync | None = "copy",
        critic_loss_statistics: Statistics = "batch_update",
        actor_loss_actor_statistics: Statistics = "batch_update",
        actor_loss_critic_statistics: Statistics = "running",
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

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_number("beta", self.beta, low=0, low_open=True)
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_number("weight_limit", self.weight_limit, low=0, low_open=True)

    def _step_noise(self, batch: Batch) -> th.Tensor:
        return th.randn(2, *batch.actions.shape, device=batch.actions.device)

    def _defined_step(self, batch: Batch, update_actor: bool, noise: th.Tensor | None) -> UpdateInfo:
        assert noise is not None
        return gradient_step(
            self._networks,
            batch,
            self.gamma,
            self.tau,
            self._pass_statistics,
            noise,
            self.beta,
            self.weighting,
            self.weight_limit,
        )

    def _step_on_engine(self) -> EngineStep:
        return step_on_engine(self._pass_statistics, float(self.beta), self.weighting, float(self.weight_limit))
