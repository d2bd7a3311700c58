"""Samplers by name: each is a diffusers scheduler with the settings that make it that sampler."""

from __future__ import annotations

from typing import Any

from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from jpgen.errors import UnknownNameError

SCHEDULERS: dict[str, tuple[Any, dict[str, object]]] = {
    "dpm++2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "ddim": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
}
"""Name -> scheduler class and its own settings. First-order DPM-Solver++ is DDIM (Lu et al. 2022, arXiv 2211.01095)."""


def make_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A fresh scheduler `name` for a model whose saved scheduler settings are `config`; raises UnknownNameError."""
    if name not in SCHEDULERS:
        raise UnknownNameError.of("サンプラー / scheduler", name, SCHEDULERS)
    kind, settings = SCHEDULERS[name]
    kept = {key: value for key, value in config.items() if key not in {"_class_name", "algorithm_type", "solver_order", "solver_type"}}
    return kind.from_config({**kept, **settings})
