"""SAC with the batch normalisation of the family, and CrossQ: its parameters and its gradient step."""

import math
from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import LinearSchedule, update_learning_rate

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.common.steps import Batch, UpdateInfo
from sb3_bn_ddpg.datasets.transitions import Dataset
from sb3_bn_ddpg.fast.parts import EngineStep
from sb3_bn_ddpg.networks.entropy import EntropyCoefficient
from sb3_bn_ddpg.networks.policies import BNSACCnnPolicy, BNSACMultiInputPolicy, BNSACPolicy
from sb3_bn_ddpg.networks.statistics import Statistics, StatisticsSync, TargetStatistics
from sb3_bn_ddpg.off_policy import BNOffPolicyAlgorithm
from sb3_bn_ddpg.sac.engine_step import step_on_engine
from sb3_bn_ddpg.sac.step import gradient_step

CROSSQ: dict[str, Any] = dict(
    learning_rate=1e-3,
    policy_delay=3,
    use_target_networks=False,
    target_statistics="joint",
    policy_kwargs=dict(
        net_arch=dict(pi=[256, 256], qf=[1024, 1024]),
        normalization="batch_renorm",
        norm_order="after_activation",
        norm_momentum=0.01,
        norm_eps=1e-3,
        critic_input_norm="state_action",
        critic_norm_layers="all",
        action_layer=1,
        optimizer_kwargs=dict(betas=(0.5, 0.999)),
    ),
)
"""
The arguments by which :class:`BNSAC` is `CrossQ <https://arxiv.org/abs/1902.05605>`_ as sb3-contrib has it:
``BNSAC("MlpPolicy", env, **CROSSQ)``. For another one, ``**CROSSQ | dict(batch_size=64)``.
"""

XQC: dict[str, Any] = dict(
    learning_rate=LinearSchedule(3e-4, 2.1e-4, 1.0),
    critic_learning_rate=LinearSchedule(3e-4, 3e-5, 1.0),
    learning_starts=5_000,
    gradient_steps=2,
    policy_delay=3,
    ent_coef="auto_0.01",
    target_entropy="auto_0.5",
    target_statistics="joint",
    weight_normalization="both",
    reward_scaling="return_std",
    policy_kwargs=dict(
        net_arch=dict(pi=[256, 256, 256, 256], qf=[512, 512, 512, 512]),
        norm_momentum=0.01,
        norm_eps=1e-3,
        critic_input_norm="state_action",
        critic_norm_layers="all",
        action_layer=1,
        n_atoms=101,
        v_min=-5.0,
        v_max=5.0,
    ),
)
"""
The arguments by which :class:`BNSAC` is nearly `XQC <https://arxiv.org/abs/2509.25174>`_ as its authors' code has it
(:doc:`/sac` says what differs): ``BNSAC("MlpPolicy", env, gamma=..., **XQC)``, where gamma is the task's. The rate of actor
and entropy coefficient ends at 2.1e-4: there it is a schedule over their own steps, one in three.
"""


class BNSAC(BNOffPolicyAlgorithm):
    """
    Soft Actor-Critic (SAC, `Haarnoja et al. <https://arxiv.org/abs/1812.05905>`_) with the batch normalisation of
    :class:`~sb3_bn_ddpg.BNDDPG`: a stochastic policy, which is to be as random as ``target_entropy`` says.

    The parameters are those of SB3's ``SAC``, in its order, followed by the ones of this family. ``**CROSSQ``
    (:data:`~sb3_bn_ddpg.sac.bn_sac.CROSSQ`) makes it `CrossQ <https://arxiv.org/abs/1902.05605>`_, and ``**XQC``
    (:data:`~sb3_bn_ddpg.sac.bn_sac.XQC`) nearly `XQC <https://arxiv.org/abs/2509.25174>`_.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Learning rate (>= 0), a number or a function of the progress remaining (from 1 to 0)
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
    :param action_noise: Noise that is added to the policy's actions, which are random already: None, ``"normal"``, ``"ou"`` or
        an instance
    :param replay_buffer_class: Replay buffer class to use (for instance ``HerReplayBuffer``).
        If ``None``, it will be automatically selected.
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer
        at a cost of more complexity.
        See https://github.com/DLR-RM/stable-baselines3/issues/37#issuecomment-637501195
    :param n_steps: When n_step > 1, uses n-step return (with the NStepReplayBuffer) when updating the Q-value network.
    :param ent_coef: What the entropy is weighted with: a number >= 0; ``"auto"`` learns it, ``"auto_0.1"`` from 0.1 on instead
        of from 1. A learned one of a loaded model goes on where it was.
    :param target_update_interval: Number of updates between two moves of the target critics (>= 1). SB3 starts counting anew
        after each rollout, so with ``gradient_steps=1`` it moves them at every update.
    :param target_entropy: The entropy that a learned coefficient aims at: a number; ``"auto"`` is minus the number of the
        action's entries, ``"auto_0.5"`` half of that
    :param use_sde: Must be False: state-dependent exploration is not implemented
    :param sde_sample_freq: Without effect
    :param use_sde_at_warmup: Without effect
    :param policy_delay: The actor and the entropy coefficient are only updated once every ``policy_delay`` updates of the
        critics (>= 1)
    :param critic_learning_rate: Learning rate of the critics (>= 0), a number or a schedule (if None: ``learning_rate``)
    :param critic_weight_decay: L2 weight decay of the critics' weights (>= 0; its biases, and batch norm's gamma and beta
        are spared): with Adam, this times the weight is added to the gradient of the loss
    :param use_target_networks: Whether the TD target comes from slowly moving target networks. Without them,
        ``policy.critic_target`` is the online network itself, as ``policy.actor_target`` always is.
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
    :param target_statistics: Batch-norm statistics of actor and critics in the TD target: ``"running"``, ``"batch"``,
        ``"running_update"`` or ``"batch_update"``, where ``_update`` also updates the running ones from this pass
        (see :data:`~sb3_bn_ddpg.networks.statistics.Statistics`). The default, as BNDDPG's, is the minibatch of next states.
        ``"joint"``, meant for training without target networks, takes states and next states through the critics in one
        pass (see :data:`~sb3_bn_ddpg.networks.statistics.TargetStatistics`).
    :param target_statistics_sync: How running statistics reach the target networks: ``"copy"`` after every update,
        ``"polyak"`` by ``tau``, or None (only with a ``target_statistics`` other than ``"running"``)
    :param critic_loss_statistics: Batch-norm statistics of the critics in their loss: ``"batch_update"`` or
        ``"running_update"``
    :param actor_loss_actor_statistics: Batch-norm statistics of the actor in its loss: ``"batch_update"`` or
        ``"running_update"``
    :param actor_loss_critic_statistics: Batch-norm statistics of the critics in the actor's loss: any of the four
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation:
        see :class:`~sb3_bn_ddpg.networks.policies.BNSACPolicy`, of which ``n_critics`` (2) is the number of critics
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators, the noise's included
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of its range, or the action space is not a bounded ``Box``
    """

    ent_coef: str | float
    target_update_interval: int
    target_entropy: str | float
    entropy_coefficient: EntropyCoefficient

    has_target_actor: ClassVar[bool] = False
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": BNSACPolicy,
        "CnnPolicy": BNSACCnnPolicy,
        "MultiInputPolicy": BNSACMultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[BNSACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | Literal["normal", "ou"] | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        policy_delay: int = 1,
        critic_learning_rate: float | Schedule | None = None,
        critic_weight_decay: float = 0.0,
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

    def _set_up_update(self) -> None:
        value, is_learned = self._check_entropy()
        made = getattr(self, "entropy_coefficient", None)
        if made is None or (made.value, made.is_learned) != (value, is_learned):
            self.entropy_coefficient = EntropyCoefficient(value, is_learned).to(self.device)
            self.entropy_coefficient.optimizer = th.optim.Adam(self.entropy_coefficient.parameters(), lr=0.0)
        super()._set_up_update()

    def _check_entropy(self) -> tuple[float, bool]:
        """
        :return: The entropy coefficient at first, and whether it is learned
        :raises ValueError: if it, or the target entropy, is out of its range
        """
        target, is_auto = _after_auto(self.target_entropy)
        if not math.isfinite(target):
            raise ValueError(
                f"`target_entropy={self.target_entropy!r}` is not allowed: it must be 'auto' or a finite number, or 'auto_' "
                "and a factor (as 'auto_0.5')"
            )
        self.target_entropy = -target * get_action_dim(self.action_space) if is_auto else target
        value, is_learned = _after_auto(self.ent_coef)
        if not 0 <= value < math.inf or (is_learned and value == 0):
            raise ValueError(
                f"`ent_coef={self.ent_coef!r}` is not allowed: it must be 'auto', 'auto_' and a first value > 0 (as "
                "'auto_0.1'), or a number >= 0"
            )
        return value, is_learned

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_number("target_update_interval", self.target_update_interval, low=1, integer=True)
        if self.use_sde:
            raise ValueError("`use_sde=True` is not allowed: state-dependent exploration (gSDE) is not implemented")

    @property
    def log_ent_coef(self) -> th.Tensor | None:
        """The logarithm of the entropy coefficient, if it is learned, as SB3's ``SAC`` has it."""
        return self.entropy_coefficient.log_ent_coef if self.entropy_coefficient.is_learned else None

    @property
    def ent_coef_optimizer(self) -> th.optim.Optimizer | None:
        """Its optimizer, if it is learned, as SB3's ``SAC`` has it."""
        return self.entropy_coefficient.optimizer if self.entropy_coefficient.is_learned else None

    def _entropy(self) -> EntropyCoefficient:
        return self.entropy_coefficient

    def _update_optimizers(self) -> None:
        super()._update_optimizers()
        rate = self.lr_schedule(self._current_progress_remaining)
        update_learning_rate(self.entropy_coefficient.optimizer, rate)

    def _step_noise(self, batch: Batch) -> th.Tensor:
        # The same numbers in float64, where a policy is of that type
        return th.randn(2, *batch.actions.shape, device=batch.actions.device).type_as(batch.actions)

    def _updates_targets(self, update_actor: bool) -> bool:
        return self._n_updates % self.target_update_interval == 0

    def _defined_step(self, batch: Batch, update_actor: bool, noise: th.Tensor | None) -> UpdateInfo:
        assert noise is not None
        return gradient_step(
            self._networks,
            batch,
            self.gamma,
            self.tau,
            self._pass_statistics,
            noise,
            float(self.target_entropy),
            update_actor,
            self._updates_targets(update_actor),
        )

    def _step_on_engine(self) -> EngineStep:
        entropy = self.entropy_coefficient
        return step_on_engine(
            self._pass_statistics,
            self.use_target_networks,
            entropy.is_learned,
            entropy.value,
            float(self.target_entropy),
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "entropy_coefficient"]

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        As :meth:`~sb3_bn_ddpg.saving.models.SavingAlgorithm.set_parameters`. A learned entropy coefficient goes on with what
        another one has learned. Where either is fixed, it keeps its own value.

        :param load_path_or_dict: Location of the saved data (path or file-like), or a nested dictionary
        :param exact_match: If True, the given parameters should include parameters for each module
        :param device: Device on which the code should run.
        """
        super().set_parameters(load_path_or_dict, exact_match, device)
        if not (self.entropy_coefficient.is_learned and self.entropy_coefficient.was_learned):
            self.entropy_coefficient.start_anew()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, "entropy_coefficient", "entropy_coefficient.optimizer"], variables


def _after_auto(value: Any) -> tuple[float, bool]:
    """
    :param value: A number, which SB3 takes as a string, too; ``"auto"``, or ``"auto_"`` and a number
    :return: The number, 1 for ``"auto"``, NaN if there is none; and whether the value starts with ``"auto"``
    """
    is_auto = isinstance(value, str) and value.startswith("auto")
    if value == "auto":
        return 1.0, True
    try:
        return math.nan if isinstance(value, bool) else float(str(value).removeprefix("auto_") if is_auto else value), is_auto
    except (TypeError, ValueError):
        return math.nan, is_auto
