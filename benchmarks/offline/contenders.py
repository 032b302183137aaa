"""Who is measured by :mod:`benchmarks.offline.speed`. Standard library only, so that every environment can import it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """
    :param label: Name in the table
    :param algorithm: Name of the class, d3rlpy's or this package's
    :param peer: The contender that it is compared with
    :param environment: Virtual environment it runs in: ``"main"`` is the one that runs the benchmark
    :param kwargs: Arguments of the constructor
    """

    label: str
    algorithm: str
    peer: str
    environment: str = "main"
    kwargs: dict[str, Any] = field(default_factory=dict)


WAYS: dict[str, Any] = {"": True, "_compiled": "compiled"}
NORMALIZATIONS = {"": None, "_batch": "batch"}
CONTENDERS: dict[str, Contender] = {}
for _ours, _theirs, _peer in (("BNIQL", "IQL", "d3rlpy_iql"), ("BNTD3BC", "TD3PlusBC", "d3rlpy_td3_bc")):
    CONTENDERS[_peer] = Contender(f"d3rlpy {_theirs}", _theirs, _peer, environment="d3rlpy")
    for _norm, _normalization in NORMALIZATIONS.items():
        for _way, _fast_update in WAYS.items():
            _label = _ours + (", batch norm" if _normalization else "") + _way.replace("_", ", ")
            _kwargs = dict(fast_update=_fast_update, policy_kwargs=dict(normalization=_normalization))
            CONTENDERS[f"{_ours.lower()}{_norm}{_way}"] = Contender(_label, _ours, _peer, kwargs=_kwargs)
