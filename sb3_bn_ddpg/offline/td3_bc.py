"""TD3+BC: its parameters and its gradient step."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_bn_ddpg.common.checks import check_choice, check_number
from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.datasets.dataset_buffer import RewardScaling
from sb3_bn_ddpg.datasets.mixed_buffer import MixedReplayBuffer
from sb3_bn_ddpg.datasets.transitions import ROWS_AT_ONCE, Dataset
from sb3_bn_ddpg.deterministic.step import actions_and_values, clipped_noise, gradient_step
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.networks.actor_critic import Networks
from sb3_bn_ddpg.networks.layers import StandardizingExtractor
from sb3_bn_ddpg.networks.statistics import PassStatistics, Statistics, StatisticsSync
from sb3_bn_ddpg.offline.base import BNOfflineAlgorithm
from sb3_bn_ddpg.offline.losses import td3_bc_loss
from sb3_bn_ddpg.offline.policies import BNTD3BCCnnPolicy, BNTD3BCPolicy
from sb3_bn_ddpg.offline.td3_bc_engine_step import step_on_engine

STANDARDIZING_EPS = 1e-3
"""Added to the standard deviations of observations, as in the authors' code."""


class BNTD3BC(BNOfflineAlgorithm):
    """
    TD3+BC (`A Minimalist Approach to Offline Reinforcement Learning <https://arxiv.org/abs/2106.06860>`_):
    :class:`~sb3_bn_ddpg.BNTD3` whose actor's loss has a second term, the squared distance of its actions from those of the
    data.

    The default values are those of the authors' code. By default nothing is batch-normalised, as there.

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
    :param alpha: How much the value of the actor's actions counts beside imitation (>= 0): 0 imitates only
    :param normalize_observations: Whether observations are standardised by the dataset's mean and standard deviation, which
        the model keeps. If not, or with a features extractor of your own, they are left as they are.
    :param policy_delay: The actor and the target networks are only updated once every ``policy_delay`` updates of the critics
        (>= 1)
    :param target_policy_noise: Standard deviation of the noise that is added to the target's actions (>= 0)
    :param target_noise_clip: Limit for the absolute value of that noise (>= 0)
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
        see :class:`~sb3_bn_ddpg.offline.policies.BNTD3BCPolicy`. ``dict(normalization="batch")`` puts batch norm into all
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

    policy: BNTD3BCPolicy
    alpha: float
    normalize_observations: bool
    target_policy_noise: float
    target_noise_clip: float

    has_target_actor: ClassVar[bool] = True
    acts_at_random: ClassVar[bool] = False
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": BNTD3BCPolicy, "CnnPolicy": BNTD3BCCnnPolicy}

    def __init__(
        self,
        policy: str | type[BNTD3BCPolicy],
        env: GymEnv | str | None,
        dataset: Dataset = None,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        alpha: float = 2.5,
        normalize_observations: bool = True,
        policy_delay: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
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
        check_number("alpha", self.alpha, low=0)
        check_choice("normalize_observations", self.normalize_observations, (True, False))
        check_number("target_policy_noise", self.target_policy_noise, low=0)
        check_number("target_noise_clip", self.target_noise_clip, low=0)

    def _use_dataset(self) -> None:
        extractors = [
            network.features_extractor
            for network in (self.actor, self.actor_target, self.critic, self.critic_target)
            if isinstance(network.features_extractor, StandardizingExtractor)
        ]
        if not extractors:
            return
        mean, scale = th.tensor(0.0), th.tensor(1.0)  # also of a file that has others
        if self.normalize_observations:
            mean, std = self._feature_statistics()
            scale = std + STANDARDIZING_EPS
        for extractor in extractors:
            extractor.mean.copy_(mean)
            extractor.scale.copy_(scale)

    def _feature_statistics(self) -> tuple[th.Tensor, th.Tensor]:
        """
        :return: Mean and standard deviation of what the features extractor gets of the dataset's observations: as the replay
            buffer and SB3's preprocessing hand them on, normalised, scaled or one-hot; float64, of shape ``(features_dim,)``
        """
        buffer = self._dataset_and_new()
        dataset = buffer.dataset if isinstance(buffer, MixedReplayBuffer) else buffer
        flatten = FlattenExtractor(self.observation_space)

        def sums(transform: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
            total = th.zeros(1, dtype=th.float64)
            for start in range(0, dataset.size(), ROWS_AT_ONCE):
                rows = dataset.observations[start : start + ROWS_AT_ONCE, 0]
                obs = th.as_tensor(dataset._normalize_obs(rows, self.get_vec_normalize_env()))
                total = total + transform(self.actor.extract_features(obs, flatten).double()).sum(dim=0)
            return total

        mean = sums(lambda features: features) / dataset.size()
        return mean, (sums(lambda features: (features - mean) ** 2) / dataset.size()).sqrt()

    def _step_noise(self, batch: Batch) -> th.Tensor | None:
        return clipped_noise(batch, self.target_policy_noise, self.target_noise_clip)

    def _defined_step(self, batch: Batch, update_actor: bool, noise: th.Tensor | None) -> UpdateInfo:
        loss_of = partial(actor_loss, alpha=self.alpha)
        return gradient_step(
            self._networks, batch, self.gamma, self.tau, self._pass_statistics, update_actor, noise, loss_of=loss_of
        )

    def _step_on_engine(self) -> EngineStep:
        return step_on_engine(self._pass_statistics, self.use_target_networks, float(self.alpha))


def actor_loss(
    nets: Networks, batch: Batch, statistics: PassStatistics, features: th.Tensor | None, alpha: float
) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """
    :param nets: The networks
    :param batch: Transitions sampled from the dataset
    :param statistics: Which batch-norm statistics each pass normalises with and updates: they are TD3's
    :param features: None: the offline algorithms share no features extractor
    :param alpha: How much the value counts beside imitation, >= 0
    :return: The actor's loss (:func:`~sb3_bn_ddpg.offline.losses.td3_bc_loss`), and what is reported of it
    """
    actions, q_values = actions_and_values(nets, batch, statistics, features, "first")
    loss, bc_loss = td3_bc_loss(q_values, actions, batch.actions, alpha)
    return loss, dict(bc_loss=bc_loss)
