"""Rewards divided by the spread of the discounted return (``reward_scaling="return_std"``), wherever the update meets them."""

import warnings
from typing import Any

import torch as th
from numpy.typing import NDArray

from sb3_bn_ddpg.common.return_scaler import ReturnScaler
from sb3_bn_ddpg.common.steps import Batch
from sb3_bn_ddpg.off_policy.stepping import SteppingAlgorithm


class ScaledRewardsAlgorithm(SteppingAlgorithm):
    """An algorithm whose minibatches have scaled rewards, if ``reward_scaling`` asks for that."""

    reward_scaler: ReturnScaler | None = None
    """What the sampled rewards are divided by; the replay buffer has them as they came"""

    def _set_up_reward_scaling(self) -> None:
        if self.reward_scaling != "return_std":
            self.reward_scaler = None
        elif self.reward_scaler is None:  # and not that of a loaded model
            self.reward_scaler = ReturnScaler(self.n_envs)

    def begin_episodes(self) -> None:
        """Reset the environment between two steps of a training, as ``learn`` does at its start."""
        super().begin_episodes()
        self._begin_returns()

    def _begin_returns(self) -> None:
        if self.reward_scaler is not None:
            self.reward_scaler.begin_episodes(self.n_envs)

    def _count_returns(self, reward: NDArray[Any], dones: NDArray[Any]) -> None:
        """
        :param reward: Rewards of a step, of shape ``(n_envs,)``
        :param dones: Whether episodes ended, of the same shape
        """
        if self.reward_scaler is not None:
            self.reward_scaler.update(reward, dones, self.gamma)

    def _sample(self, batch_size: int, n_batches: int = 1) -> Batch:
        batch = super()._sample(batch_size, n_batches)
        if self.reward_scaler is None:
            return batch
        return batch._replace(rewards=batch.rewards / self.reward_scaler.scale)

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """
        :return: As SB3's, the state of each network and optimizer by its name; and that of what scales rewards, in whose
            units the critics are
        """
        scaler = self.reward_scaler
        return super().get_parameters() | ({} if scaler is None else {"reward_scaler": scaler.state_dict()})

    def _take_parameters(self, parameters: dict[str, Any], exact_match: bool, device: th.device | str) -> None:
        state, scaler = parameters.pop("reward_scaler", None), self.reward_scaler
        has_critic = any(name.startswith(("policy", "critic")) for name in parameters)
        super()._take_parameters(parameters, exact_match, device)
        if scaler is not None and state is not None:
            scaler.load_state_dict(state)
        elif state is not None or (scaler is not None and has_critic):
            theirs, ours = ("scaled", "unscaled") if scaler is None else ("unscaled", "scaled")
            warnings.warn(
                f"The parameters are of critics of {theirs} rewards, but `reward_scaling={self.reward_scaling!r}`: values of "
                f"{ours} ones will have to be learned anew",
                stacklevel=4,
            )
