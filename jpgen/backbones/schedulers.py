"""Samplers by name: each is a diffusers scheduler with the settings that make it that sampler."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import diffusers
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from jpgen.errors import SettingError, UnknownNameError

OWN = "own"
"""The sampler that the model was saved with."""

SCHEDULERS: dict[str, tuple[Any, dict[str, object]]] = {
    "dpm++2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "ddim": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "ddim_trailing": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 1, "timestep_spacing": "trailing"}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
    "euler": (EulerDiscreteScheduler, {"use_karras_sigmas": False}),
    "euler_karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "euler_trailing": (EulerDiscreteScheduler, {"use_karras_sigmas": False, "timestep_spacing": "trailing"}),
    "lcm": (LCMScheduler, {"original_inference_steps": 50}),
    "dmd2": (LCMScheduler, {"original_inference_steps": 1000}),
}
"""Name -> scheduler class and its own settings.

First-order DPM-Solver++ is DDIM (Lu et al. 2022, arXiv 2211.01095). "trailing" starts at the last training timestep (Lin et al. 2023, arXiv
2305.08891), as distilled models want: euler_trailing is SDXL-Lightning's, ddim_trailing Hyper-SD's. "dmd2" is LCM on evenly spaced timesteps: in four
steps 999, 749, 499, 249, those of DMD2 (Yin et al. 2024, arXiv 2405.14867).
"""

FLOW: dict[str, tuple[Any, dict[str, object]]] = {
    **{name: made for name, made in SCHEDULERS.items() if made[0] in (DPMSolverMultistepScheduler, UniPCMultistepScheduler)},
    "euler": SCHEDULERS["ddim"],
    "euler_trailing": SCHEDULERS["ddim_trailing"],
}
"""The samplers of models on a flow's path. On a straight flow Euler's step and DDIM's are the same; the rest have no such form in diffusers."""


def make_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A fresh scheduler `name` for a model whose saved scheduler settings are `config`; `.model_outputs[-1]` is the clean latents it last guessed.

    Raises UnknownNameError, or SettingError for a sampler that cannot follow what this model predicts.
    """
    if name not in (OWN, *SCHEDULERS):
        raise UnknownNameError.of("サンプラー / scheduler", name, (OWN, *SCHEDULERS))
    if name == OWN:
        return _guessing(_own(config))
    flowing = str(config.get("_class_name", "")).startswith("FlowMatch")
    if flowing:  # says nothing of what only it can be
        config = {**config, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": config.get("shift", 1.0)}
    known = FLOW if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction" else SCHEDULERS
    if name not in known:
        others = ", ".join(sorted(known))
        raise SettingError(f"サンプラー {name} は flow 予測のモデルでは使えません / scheduler {name} cannot follow a flow model: use {others}")
    kind, settings = known[name]
    kept = {key: value for key, value in config.items() if key not in {"algorithm_type", "solver_order", "solver_type"}}
    if not flowing:
        return _guessing(_made(kind, {**kept, **settings}))
    return _guessing(_shifting(_made(kind, {**kept, **settings, "use_dynamic_shifting": False}), bool(config.get("use_dynamic_shifting"))))


def _own(config: dict[str, Any]) -> Any:
    name = str(config.get("_class_name", DPMSolverMultistepScheduler.__name__))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise UnknownNameError(f"サンプラー {name!r} は diffusers にありません / diffusers has no {name!r}: name another scheduler, e.g. dpm++2m")
    return _made(kind, config)


def _made(kind: Any, config: dict[str, Any]) -> Any:
    wanted = inspect.signature(kind.__init__).parameters  # the settings of another class only make diffusers warn
    return kind.from_config({key: value for key, value in config.items() if key in wanted})


def _shifting(scheduler: Any, dynamic: bool) -> Any:
    """The scheduler, which may be told μ for the size of a picture as FlowMatchEuler is: where the model's shift is `dynamic`, it is exp(μ)."""
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def shifted(*args: Any, mu: float | None = None, **kwargs: Any) -> None:
        if dynamic and mu is not None:
            scheduler.register_to_config(flow_shift=math.exp(mu))
        set_timesteps(*args, **kwargs)

    scheduler.set_timesteps = shifted
    return scheduler


def _guessing(scheduler: Any) -> Any:
    """The scheduler, whose step also keeps the clean latents it guessed, where the class does not do so by itself."""
    if hasattr(scheduler, "model_outputs"):
        return scheduler
    step = scheduler.step

    @functools.wraps(step)
    def remembering(output: Any, time: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        made = step(output, time, sample, *args, **kwargs)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # x − σ·v
            guess = sample - scheduler.sigmas[scheduler.step_index - 1].to(sample) * output
        else:
            guess = made[1] if len(made) > 1 else made[0]
        scheduler.model_outputs = [guess]
        return made

    scheduler.step, scheduler.model_outputs = remembering, [None]
    return scheduler
