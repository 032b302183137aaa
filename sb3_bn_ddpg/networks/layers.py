"""The building blocks of the paper's networks: convolutions, normalised hidden layers, their initialisation (section 7)."""

import inspect
from typing import Any, Literal

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import TensorDict
from torch import nn

from sb3_bn_ddpg.common.checks import check_number
from sb3_bn_ddpg.networks.normalization import LayerNormalization, Normalization, NormalizationConfig

CONVOLUTIONS = ((8, 4), (5, 1), (5, 1))
"""
Kernel and stride of each layer, none padded. The paper leaves them open but for the count of "about 430,000 parameters" a
network: these leave 7x7 of 64x64 pixels, and with them an actor has 424,000.
"""
N_FILTERS = 32

FinalInit = float | Literal["fan_in"]
"""Bound of an output layer's initialisation, or ``"fan_in"``: as a hidden layer's."""


class PaperExtractor(BaseFeaturesExtractor):
    """A features extractor that normalises its inputs by itself, as far as they are to be: actor and critic do not."""


class PaperCNN(PaperExtractor):
    """
    The paper's convolutional layers: three of 32 filters, without pooling, weights and biases from U[-1/sqrt(f), 1/sqrt(f)]
    with f the fan-in (section 7). The two layers of 200 units behind them are the policy's ``net_arch``.

    :param observation_space: Images of shape ``(channels, height, width)``: uint8 in [0, 255], which SB3 scales to [0, 1].
        Where an image is smaller than a kernel, the kernel is cut to its size.
    :param conv_normalization: What goes between each convolution and its activation function: ``"batch"``
        (``nn.BatchNorm2d``), ``"batch_renorm"``, ``"layer"`` (over all channels and places of an image) or None
    :param norm_momentum: Weight of a new batch in the running statistics, in (0, 1]
    :param norm_eps: Value added to the variance, > 0
    :param renorm_warmup_steps: Updates, less one, before batch renormalisation differs from batch normalisation, >= 0
    :param activation_fn: Activation function
    :param normalized_image: Whether the images are scaled already, and may be of any type and bounds
    :param features_dim: Number of units of a fully connected layer with a tanh after the convolutions (if None: none).
        In an extractor that actor and critic share, it is the first fully connected layer of both.
    :param features_normalization: What goes between that layer and its tanh: ``"batch"``, ``"batch_renorm"``, ``"layer"`` or
        None. Where images differ little, only a normalisation over the minibatch leaves features that differ much.
    :raises ValueError: if the observations are not images, or an argument is out of its range
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        conv_normalization: LayerNormalization | None = None,
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        renorm_warmup_steps: int = 100_000,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalized_image: bool = False,
        features_dim: int | None = None,
        features_normalization: LayerNormalization | None = None,
    ) -> None:
        if not is_image_space(observation_space, normalized_image=normalized_image):
            raise ValueError(
                f"`observation_space={observation_space}` is not allowed: it must hold images, (channels, height, width) of "
                "uint8 in [0, 255], or of any type and bounds with `normalize_images=False`; MlpPolicy is for vectors, "
                "MultiInputPolicy for dictionaries"
            )
        assert observation_space.shape is not None
        n_channels, *size = observation_space.shape
        config = NormalizationConfig(
            conv_normalization, norm_momentum, norm_eps, renorm_warmup_steps, name="conv_normalization"
        )
        modules: list[nn.Module] = []
        for kernel, stride in CONVOLUTIONS:
            kernel_size = (min(kernel, size[0]), min(kernel, size[1]))
            modules += [
                fan_in_conv(n_channels, N_FILTERS, kernel_size, stride, bias=not config.replaces_bias),
                *config.conv_layers(N_FILTERS),
                activation_fn(),
            ]
            size = [(length - k) // stride + 1 for length, k in zip(size, kernel_size, strict=True)]
            n_channels = N_FILTERS
        modules.append(nn.Flatten())
        n_features = N_FILTERS * size[0] * size[1]
        config = NormalizationConfig(
            features_normalization, norm_momentum, norm_eps, renorm_warmup_steps, name="features_normalization"
        )
        if features_dim is not None:
            check_number("features_dim", features_dim, low=1, integer=True)
            modules += hidden_layers(n_features, [features_dim], nn.Tanh, config)
        elif features_normalization is not None:
            raise ValueError(
                f"`features_normalization={features_normalization!r}` is not allowed without `features_dim`: it must be None, "
                "for there is no layer to normalise"
            )
        super().__init__(observation_space, features_dim=n_features if features_dim is None else features_dim)
        self.cnn = nn.Sequential(*modules)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Scaled images, of shape ``(batch_size, channels, height, width)``
        :return: Features, of shape ``(batch_size, features_dim)``
        """
        # On a processor the convolutions are a quarter faster with the channels last in memory; the numbers are the same
        features: th.Tensor = self.cnn(observations.contiguous(memory_format=th.channels_last))
        return features


class PaperCombinedExtractor(PaperExtractor):
    """
    Dictionaries of observations: images go through :class:`PaperCNN`, each through its own, everything else is flattened
    and normalised as the paper normalises states; then all is concatenated.

    :param observation_space: A dictionary of spaces
    :param normalization: The network's, whose input layers normalise the vectors: batch norm with ``"batch"`` and
        ``"batch_layer"``, batch renormalisation with ``"batch_renorm"``, nothing with ``"layer"`` and None
    :param conv_normalization: See :class:`PaperCNN`
    :param norm_momentum: See :class:`PaperCNN`
    :param norm_eps: See :class:`PaperCNN`
    :param renorm_warmup_steps: See :class:`PaperCNN`
    :param activation_fn: See :class:`PaperCNN`
    :param normalized_image: See :class:`PaperCNN`
    :param cnn_output_dim: Number of units of a layer behind each image's convolutions, as of SB3's ``CombinedExtractor``
        (if None: no such layer)
    :raises ValueError: if the space is no dictionary, or an argument is out of its range
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        normalization: Normalization | None = "batch",
        conv_normalization: LayerNormalization | None = None,
        norm_momentum: float = 0.1,
        norm_eps: float = 1e-5,
        renorm_warmup_steps: int = 100_000,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalized_image: bool = False,
        cnn_output_dim: int | None = None,
    ) -> None:
        if cnn_output_dim is not None:
            check_number("cnn_output_dim", cnn_output_dim, low=1, integer=True)
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"`observation_space={observation_space}` is not allowed: it must be a dictionary of spaces; "
                "MlpPolicy is for vectors, CnnPolicy for images"
            )
        config = NormalizationConfig(normalization, norm_momentum, norm_eps, renorm_warmup_steps)
        extractors: dict[str, nn.Module] = {}
        features_dim = 0
        for key, space in observation_space.spaces.items():
            if is_image_space(space, normalized_image=normalized_image):
                cnn = PaperCNN(
                    space,
                    conv_normalization,
                    norm_momentum,
                    norm_eps,
                    renorm_warmup_steps,
                    activation_fn,
                    normalized_image,
                    features_dim=cnn_output_dim,
                )
                extractors[key], dim = cnn, cnn.features_dim
            else:
                dim = get_flattened_obs_dim(space)
                extractors[key] = nn.Sequential(nn.Flatten(), *config.input_layers(dim))
            features_dim += dim
        super().__init__(observation_space, features_dim)
        self.extractors = nn.ModuleDict(extractors)

    def forward(self, observations: TensorDict) -> th.Tensor:
        """
        :param observations: Tensors of shape ``(batch_size, ...)``, images scaled
        :return: Features, of shape ``(batch_size, features_dim)``
        """
        return th.cat([extractor(observations[key]) for key, extractor in self.extractors.items()], dim=1)


class StandardizingExtractor(FlattenExtractor):
    """
    Flattens observations and standardises them by fixed statistics, those of a dataset. Until it is given some, it only
    flattens.

    :param observation_space: Observation space
    """

    mean: th.Tensor
    scale: th.Tensor

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space)
        self.register_buffer("mean", th.zeros(self.features_dim))
        self.register_buffer("scale", th.ones(self.features_dim))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Observations, of shape ``(batch_size, ...)``
        :return: Features, of shape ``(batch_size, features_dim)``
        """
        return (super().forward(observations) - self.mean) / self.scale


def inherited_kwargs(
    extractor_class: type[BaseFeaturesExtractor],
    activation_fn: type[nn.Module],
    normalization: NormalizationConfig,
    normalize_images: bool,
) -> dict[str, Any]:
    """
    What a features extractor of this package has from its policy, unless ``features_extractor_kwargs`` say otherwise.

    :param extractor_class: The extractor's class
    :param activation_fn: Activation function of the networks
    :param normalization: Normalisation of the networks
    :param normalize_images: Whether the policy scales images
    :return: Keyword arguments of the extractor; none for other classes
    """
    kwargs: dict[str, Any] = {}
    if issubclass(extractor_class, PaperExtractor):
        kwargs = dict(
            activation_fn=activation_fn,
            norm_momentum=normalization.momentum,
            norm_eps=normalization.eps,
            renorm_warmup_steps=normalization.renorm_warmup_steps,
            normalized_image=not normalize_images,
        )
    if issubclass(extractor_class, PaperCombinedExtractor):
        kwargs["normalization"] = normalization.kind
    parameters = inspect.signature(extractor_class).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}  # a subclass may have other arguments


def has_images(observation_space: spaces.Space[Any], normalize_images: bool = True) -> bool:
    """
    :param observation_space: Observation space
    :param normalize_images: Whether images are scaled by the policy: only then their type and bounds tell them
    :return: Whether observations are images, or a dictionary holds one
    """
    if isinstance(observation_space, spaces.Dict):
        return any(has_images(space, normalize_images) for space in observation_space.spaces.values())
    return is_image_space(observation_space, normalized_image=not normalize_images)


def fan_in_conv(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int], stride: int, bias: bool = True
) -> nn.Conv2d:
    """
    A convolution with the paper's initialisation of hidden layers.

    :param in_channels: Number of channels of the image
    :param out_channels: Number of filters
    :param kernel_size: Height and width of the kernel
    :param stride: Stride in both directions
    :param bias: Whether it has a bias
    :return: The layer, weights and biases drawn from U[-1/sqrt(f), 1/sqrt(f)], f the pixels times channels it looks at
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=bias)
    _init_uniform(conv, (in_channels * kernel_size[0] * kernel_size[1]) ** -0.5)
    return conv


def input_layers(
    features_extractor: BaseFeaturesExtractor, features_dim: int, normalization: NormalizationConfig
) -> list[nn.Module]:
    """
    :param features_extractor: What extracts the features
    :param features_dim: Number of features
    :param normalization: Normalisation of the network
    :return: The layers that normalise the features: one or none
    """
    return [] if isinstance(features_extractor, PaperExtractor) else normalization.input_layers(features_dim)


def hidden_layers(
    input_dim: int, net_arch: list[int], activation_fn: type[nn.Module], normalization: NormalizationConfig
) -> list[nn.Module]:
    """
    Hidden layers, each a linear map, a normalisation and an activation function in this order ("before its nonlinearity"), or
    with the last two exchanged.

    :param input_dim: Number of inputs
    :param net_arch: Number of units of each hidden layer
    :param activation_fn: Activation function
    :param normalization: Normalisation of the hidden layers
    :return: The layers in order
    """
    modules: list[nn.Module] = []
    for n_units in net_arch:
        norm_layers, activation = normalization.hidden_layers(n_units), [activation_fn()]
        modules += [
            fan_in_linear(input_dim, n_units, bias=not normalization.replaces_bias),
            *(norm_layers + activation if normalization.order == "before_activation" else activation + norm_layers),
        ]
        input_dim = n_units
    return modules


def output_linear(in_features: int, out_features: int, final_init: FinalInit) -> nn.Linear:
    """
    An output layer.

    :param in_features: Number of inputs
    :param out_features: Number of outputs
    :param final_init: Largest absolute value of its weights and biases, > 0, or ``"fan_in"``
    :return: The layer, weights and biases drawn from U[-final_init, final_init], or as those of :func:`fan_in_linear`
    :raises ValueError: if ``final_init`` is anything else
    """
    check_number("final_init", final_init, low=0, low_open=True, words=("fan_in",))
    if isinstance(final_init, str):
        return fan_in_linear(in_features, out_features)
    return uniform_linear(in_features, out_features, final_init)


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
    _init_uniform(linear, bound)
    return linear


def _init_uniform(layer: nn.Module, bound: float) -> None:
    for param in layer.parameters():
        nn.init.uniform_(param, -bound, bound)
