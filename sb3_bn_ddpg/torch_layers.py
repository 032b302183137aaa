"""The building blocks of the paper's networks: normalised hidden layers and their initialisation (section 7)."""

from torch import nn

from sb3_bn_ddpg.normalization import NormalizationConfig


def hidden_layers(
    input_dim: int, net_arch: list[int], activation_fn: type[nn.Module], normalization: NormalizationConfig
) -> list[nn.Module]:
    """
    Hidden layers, each a linear map, a normalisation and an activation function in this order ("before its nonlinearity").

    :param input_dim: Number of inputs
    :param net_arch: Number of units of each hidden layer
    :param activation_fn: Activation function
    :param normalization: Normalisation of the hidden layers
    :return: The layers in order
    """
    modules: list[nn.Module] = []
    for n_units in net_arch:
        modules += [
            fan_in_linear(input_dim, n_units, bias=not normalization.replaces_bias),
            *normalization.hidden_layers(n_units),
            activation_fn(),
        ]
        input_dim = n_units
    return modules


def fan_in_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """
    A linear map with the paper's initialisation of hidden layers.

    :param in_features: Number of inputs (the fan-in f)
    :param out_features: Number of outputs
    :param bias: Whether it has a bias
    :return: The layer, weights and biases drawn from U[-1/sqrt(f), 1/sqrt(f)]
    """
    return uniform_linear(in_features, out_features, bound=in_features**-0.5, bias=bias)


def uniform_linear(in_features: int, out_features: int, bound: float, bias: bool = True) -> nn.Linear:
    """
    A linear map with uniformly distributed weights and biases; the paper's output layers have a bound of 3e-3.

    :param in_features: Number of inputs
    :param out_features: Number of outputs
    :param bound: Largest absolute value
    :param bias: Whether it has a bias
    :return: The layer, weights and biases drawn from U[-bound, bound]
    """
    linear = nn.Linear(in_features, out_features, bias=bias)
    for param in linear.parameters():
        nn.init.uniform_(param, -bound, bound)
    return linear
