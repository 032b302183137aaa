"""
Bring your own network: sizes, normalisation, a features extractor, a normalisation for each network.

    python docs/examples/own_network.py                       # trains all of them, one after another
    python docs/examples/own_network.py --networks extractor  # or some

Each runs with verbose=1, which says why if the fast update cannot serve a network: "Updating by autograd: <reason>". It serves
linear layers with ReLU, batch norm, layer norm or none, and vector observations; the rest learns the same by autograd, more
slowly.
"""

import argparse
import time
from pathlib import Path

import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_bn_ddpg import BNDDPG, MlpPolicy
from sb3_bn_ddpg.networks.critics import Critic
from sb3_bn_ddpg.networks.normalization import NormalizationConfig


class WithSquares(BaseFeaturesExtractor):
    """The state and the squares of some learned directions in it, to be normalised and passed on to the hidden layers."""

    def __init__(self, observation_space: spaces.Box, n_squares: int = 8) -> None:
        n_inputs = spaces.flatdim(observation_space)
        super().__init__(observation_space, features_dim=n_inputs + n_squares)
        self.directions = nn.Linear(n_inputs, n_squares)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.cat([observations, self.directions(observations).square()], dim=1)


class LayerNormCriticPolicy(MlpPolicy):
    """`normalization` is the actor's alone: the critic, online and target, has layer norm."""

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Critic:
        self.critic_kwargs["normalization"] = NormalizationConfig("layer")
        return super().make_critic(features_extractor)


# Each has a policy and its policy_kwargs; whatever is left out is the paper's
NETWORKS = {
    "paper": ("MlpPolicy", dict()),
    # Fast, too: hidden layers of the actor (pi) and the critic (qf), nothing normalised
    "small": ("MlpPolicy", dict(net_arch=dict(pi=[64, 64], qf=[128, 128]), normalization=None)),
    "renorm": ("MlpPolicy", dict(normalization="batch_renorm", renorm_warmup_steps=2_000, norm_momentum=0.01)),
    "tanh": ("MlpPolicy", dict(activation_fn=nn.Tanh)),
    "extractor": ("MlpPolicy", dict(features_extractor_class=WithSquares, features_extractor_kwargs=dict(n_squares=4))),
    "layer_norm_critic": (LayerNormCriticPolicy, dict()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="a Gymnasium environment with continuous actions")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which networks to train")
    parser.add_argument("--timesteps", type=int, default=8_000, help="environment steps to train each for")
    parser.add_argument("--seed", type=int, default=0, help="seed of networks, environment and noise")
    parser.add_argument("--out", type=Path, default=Path("runs/own_network"), help="folder for the models")
    args = parser.parse_args()

    hyperparameters = dict(learning_rate=1e-3, critic_weight_decay=0.0, tau=0.005, seed=args.seed)
    for name in args.networks:
        print(f"=== {name}")
        policy, policy_kwargs = NETWORKS[name]
        model = BNDDPG(policy, args.env, policy_kwargs=policy_kwargs, verbose=1, **hyperparameters)
        start = time.perf_counter()
        model.learn(args.timesteps, log_interval=1_000_000)  # the reason, without the tables
        seconds = time.perf_counter() - start
        mean, _ = evaluate_policy(model, make_vec_env(args.env, seed=10_000), n_eval_episodes=10)
        model.save(args.out / name)
        n_parameters = sum(parameter.numel() for parameter in [*model.actor.parameters(), *model.critic.parameters()])
        print(f"{name}: {n_parameters:,} parameters, {seconds:.0f} s, a mean return of {mean:.1f}")


if __name__ == "__main__":
    main()
