"""The paper's algorithm: its parameters and its gradient step."""

from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.datasets.transitions import Dataset
from sb3_bn_ddpg.deterministic.engine_step import step_on_engine
from sb3_bn_ddpg.deterministic.step import gradient_step
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.networks.policies import BNDDPGPolicy, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_bn_ddpg.networks.statistics import Statistics, StatisticsSync, TargetStatistics
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm


class BNDDPG(BNOffPolicyAlgorithm):
    """
    Deep Deterministic Policy Gradient (DDPG) with batch normalisation, as the paper describes it:
    `Continuous control with deep reinforcement learning <https://arxiv.org/abs/1509.02971>`_.

    The defaults are the paper's (section 7, "Experiment details", low-dimensional states). What the paper leaves open, and how
    it is settled here, stands in the documentation's list of decisions.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Learning rate of the actor (>= 0), a number or a function of the progress remaining (from 1 to 0)
    :param buffer_size: Size of the replay buffer, in transitions (>= 1)
    :param learning_starts: How many steps of the model to collect transitions for, by random actions, before learning
        starts (0 or a negative number: none). With ``HerReplayBuffer``, at least as many as the first episode takes.
    :param batch_size: Minibatch size for each gradient update (>= 1, with batch norm >= 2)
    :param tau: The soft update coefficient ("Polyak update", in [0, 1])
    :param gamma: The discount factor, in [0, 1]
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout (see ``train_freq``)
        Set to ``-1`` means to do as many gradient steps as steps done in the environment
        during the rollout.
    :param action_noise: The exploration noise, added to actions scaled to [-1, 1]. ``"ou"`` is the paper's
        Ornstein-Uhlenbeck process (:class:`~sb3_bn_ddpg.OrnsteinUhlenbeckNoise`), built for the environment's
        actions; its instances and SB3's noises are accepted too; None disables noise.
    :param replay_buffer_class: Replay buffer class to use (for instance ``HerReplayBuffer``).
        If ``None``, it will be automatically selected.
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer
        at a cost of more complexity.
        See https://github.com/DLR-RM/stable-baselines3/issues/37#issuecomment-637501195
    :param n_steps: When n_step > 1, uses n-step return (with the NStepReplayBuffer) when updating the Q-value network.
    :param policy_delay: The actor and the target networks are only updated once every ``policy_delay`` updates of the critic
        (>= 1)
    :param critic_learning_rate: Learning rate of the critic (>= 0), a number or a schedule
    :param critic_weight_decay: L2 weight decay of the critic's weights (>= 0; its biases, and batch norm's gamma and beta
        are spared): with Adam, this times the weight is added to the gradient of the loss. With the paper's 1e-2 most of the
        weights vanish in 500,000 steps; 0 has learned more on each of three tasks.
    :param use_target_networks: Whether the TD target comes from slowly moving target networks. Without them,
        ``policy.actor_target`` and ``policy.critic_target`` are the online networks themselves.
    :param weight_normalization: Whose weights keep their norm after each step, where batch norm follows them: the
        ``"critic"``'s, ``"both"`` networks' or None's (see :func:`~sb3_bn_ddpg.networks.actor_critic.restore_norms`)
    :param reward_scaling: ``"return_std"`` divides the rewards of a minibatch by the running standard deviation of the
        discounted return, as XQC does (:class:`~sb3_bn_ddpg.common.return_scaler.ReturnScaler`); the replay buffer has them
        as they came. Q-values and losses are then in units of that deviation. None leaves rewards as they are. Not with
        ``HerReplayBuffer``, nor with a ``VecNormalize`` that scales rewards.
    :param fast_update: Whether to calculate the gradient steps by hand-derived formulas, where that is possible: linear layers
        with ReLU, batch norm, batch renorm, layer norm or none, Adam. The numbers are the same but for rounding; False always
        uses autograd. ``"compiled"`` does so in code compiled by Numba, for the CPU (extra ``compiled``): the faster one for
        minibatches up to some hundred, after 20 seconds of compiling in the first run on a machine. Both take no more
        threads than their matrix products gain by. On a GPU, either is a CUDA graph.
    :param allow_nan_observations: Whether observations may hold NaN, as a mark of what is not observed. If False, one ends the
        training with an error. If True, a features extractor of your own must leave them out. If None, NaN is allowed, with a
        warning, where the features extractor makes finite numbers of it, and ends the training elsewhere.
    :param n_steps_final: Number of steps of the returns at the end of ``learn``, in [1, ``n_steps``]: with the progress p they
        have ``n_steps * (n_steps_final / n_steps) ** p`` steps, rounded, as in `BBF <https://arxiv.org/abs/2305.19452>`_. If
        None, ``n_steps`` all along. Not with a ``replay_buffer_class``.
    :param demonstrations: Transitions that somebody stored, from which a part of each minibatch comes, as in
        `RLPD <https://arxiv.org/abs/2302.02948>`_: a ``minari.MinariDataset`` or its id (extra ``offline``), an SB3
        ``ReplayBuffer`` or the path of a saved one, a dictionary of arrays or the path of an ``.npz`` file of arrays
        (:data:`~sb3_bn_ddpg.datasets.transitions.Dataset`). With ``n_steps``, their returns are of several steps too. They are
        no part of the file of ``save``: for learning on, ``load(path, demonstrations=...)`` takes them again. They are in
        checkpoints.
    :param demonstration_ratio: How much of each minibatch demonstrations are, in [0, 1]. If None, they and the model's own
        transitions are one replay buffer: any transition is as probable as any other.
    :param target_statistics: Batch-norm statistics of actor and critic in the TD target: ``"running"``, ``"batch"``,
        ``"running_update"`` or ``"batch_update"``, where ``_update`` also updates the running ones from this pass
        (see :data:`~sb3_bn_ddpg.networks.statistics.Statistics`). The paper keeps running statistics for "exploration or
        evaluation", so the default is the minibatch of next states. ``"joint"``, meant for training without target
        networks, takes states and next states through the critic in one pass (see
        :data:`~sb3_bn_ddpg.networks.statistics.TargetStatistics`).
    :param target_statistics_sync: How running statistics reach the target networks: ``"copy"`` after every update,
        ``"polyak"`` by ``tau``, or None (only with a ``target_statistics`` other than ``"running"``)
    :param critic_loss_statistics: Batch-norm statistics of the critic in its loss: ``"batch_update"`` or
        ``"running_update"``
    :param actor_loss_actor_statistics: Batch-norm statistics of the actor in its loss: ``"batch_update"`` or
        ``"running_update"``
    :param actor_loss_critic_statistics: Batch-norm statistics of the critic in the actor's loss: any of the four
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation:
        see :class:`~sb3_bn_ddpg.networks.policies.BNDDPGPolicy`
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators, the noise's included
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of its range, or the action space is not a bounded ``Box``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[BNDDPGPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 64,
        tau: float = 0.001,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | Literal["ou"] | None = "ou",
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_delay: int = 1,
        critic_learning_rate: float | Schedule = 1e-3,
        critic_weight_decay: float = 1e-2,
        use_target_networks: bool = True,
        weight_normalization: Literal["critic", "both"] | None = None,
        reward_scaling: Literal["return_std"] | None = None,
        fast_update: bool | Literal["compiled"] = True,
        allow_nan_observations: bool | None = None,
        n_steps_final: int | None = None,
        demonstrations: Dataset = None,
        demonstration_ratio: float | None = 0.5,
        target_statistics: TargetStatistics = "batch",
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

    def _defined_step(self, batch: Batch, update_actor: bool, noise: th.Tensor | None) -> UpdateInfo:
        return gradient_step(self._networks, batch, self.gamma, self.tau, self._pass_statistics, update_actor)

    def _step_on_engine(self) -> EngineStep:
        return step_on_engine(self._pass_statistics, self.use_target_networks, n_ascended=1)
