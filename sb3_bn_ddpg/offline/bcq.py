"""BCQ: its parameters and its gradient step."""

from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.datasets.dataset_buffer import RewardScaling
from sb3_bn_ddpg.datasets.transitions import Dataset
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.networks.generative import ActionVAE
from sb3_bn_ddpg.networks.statistics import Statistics, StatisticsSync
from sb3_bn_ddpg.offline.base import BNOfflineAlgorithm
from sb3_bn_ddpg.offline.bcq_engine_step import step_on_engine
from sb3_bn_ddpg.offline.bcq_networks import BNBCQCnnPolicy, BNBCQPolicy
from sb3_bn_ddpg.offline.bcq_step import gradient_step


class BNBCQ(BNOfflineAlgorithm):
    """
    Batch-constrained Q-learning (BCQ, `Off-Policy Deep Reinforcement Learning without Exploration
    <https://arxiv.org/abs/1812.02900>`_): a generative model of the data's actions, slightly perturbed, proposes what to do;
    the critics choose among that.

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
    :param lmbda: Weight of the smallest critic's value in the target, in [0, 1]; the largest one's is the rest
    :param n_target_actions: Number of actions in each next state of which the target takes the best (>= 1)
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
        see :class:`~sb3_bn_ddpg.offline.bcq_networks.BNBCQPolicy`. It has the size of the
        perturbation, ``phi``. ``dict(normalization="batch")`` puts batch norm into all networks,
        ``"layer"`` layer norm.
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of its range, the action space is not a bounded ``Box``, or the dataset does not
        fit the environment
    """

    policy: BNBCQPolicy
    lmbda: float
    n_target_actions: int

    has_target_actor: ClassVar[bool] = True
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": BNBCQPolicy, "CnnPolicy": BNBCQCnnPolicy}

    def __init__(
        self,
        policy: str | type[BNBCQPolicy],
        env: GymEnv | str | None,
        dataset: Dataset = None,
        learning_rate: float | Schedule = 1e-3,
        batch_size: int = 100,
        tau: float = 0.005,
        gamma: float = 0.99,
        lmbda: float = 0.75,
        n_target_actions: int = 10,
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

    @property
    def vae(self) -> ActionVAE:
        """The generative model of the data's actions."""
        return self.policy.vae

    def _check_arguments(self) -> None:
        super()._check_arguments()
        self._refuse_joint_pass()
        check_number("lmbda", self.lmbda, low=0, high=1)
        check_number("n_target_actions", self.n_target_actions, low=1, integer=True)

    def _auxiliary_network(self) -> ActionVAE:
        return self.vae

    def _update_optimizers(self) -> None:
        super()._update_optimizers()
        update_learning_rate(self.vae.optimizer, self.lr_schedule(self._current_progress_remaining))

    def _actions_in(self, observations: Any) -> th.Tensor:
        return self.policy._predict(observations, deterministic=True)  # the actor alone perturbs

    def _step_noise(self, batch: Batch) -> th.Tensor:
        n_latents = (self.n_target_actions + 2) * len(batch.actions)
        return th.randn(n_latents, self.vae.latent_dim, device=batch.actions.device)

    def _defined_step(self, batch: Batch, update_actor: bool, noise: th.Tensor | None) -> UpdateInfo:
        assert noise is not None
        return gradient_step(self._networks, batch, self.gamma, self.tau, self._pass_statistics, noise, self.lmbda)

    def _step_on_engine(self) -> EngineStep:
        actor, actor_target = self.policy.actor, self.policy.actor_target
        return step_on_engine(
            self._pass_statistics, float(self.lmbda), float(actor.phi), float(actor_target.phi), self.n_target_actions
        )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "vae.optimizer"], tensors
