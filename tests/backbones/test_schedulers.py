"""Samplers by name: the timesteps that distilled models want, and what a flow model cannot use."""

import inspect
import logging

import pytest
import torch

from jpgen.backbones.schedulers import FLOW, OWN, SCHEDULERS, make_scheduler
from jpgen.errors import SettingError, UnknownNameError

SDXL = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading", "interpolation_type": "linear", "skip_prk_steps": True,
}  # fmt: skip
FLOWING = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("euler_trailing", [999, 749, 499, 249]),  # SDXL-Lightning
        ("ddim_trailing", [999, 749, 499, 249]),  # Hyper-SD
        ("dmd2", [999, 749, 499, 249]),  # as its README lists them
        ("lcm", [999, 759, 499, 259]),
        (OWN, [751, 501, 251, 1]),
    ],
)
def test_timesteps_of_four_steps(name: str, timesteps: list[int]) -> None:
    scheduler = make_scheduler(name, SDXL)
    scheduler.set_timesteps(4)
    assert [round(float(t)) for t in scheduler.timesteps] == timesteps


@pytest.mark.parametrize("name", [OWN, *SCHEDULERS])
def test_every_sampler_keeps_its_guess_of_the_picture(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scheduler = make_scheduler(name, SDXL)
    assert not caplog.records
    assert ("generator" in inspect.signature(scheduler.step).parameters) == (name != "unipc")
    scheduler.set_timesteps(2)
    clean = torch.full((1, 4, 2, 2), 0.5)
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    time = scheduler.timesteps[0]
    seen = scheduler.add_noise(clean, noise, time[None])
    scheduler.scale_model_input(seen, time)
    scheduler.step(noise, time, seen, return_dict=False)
    if name != "lcm" and name != "dmd2":  # theirs is a mixture with what was seen
        assert torch.allclose(scheduler.model_outputs[-1], clean, atol=1e-2)


@pytest.mark.parametrize("predicts", ["flow_prediction", "sample"])
@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - FLOW.keys()))
def test_what_cannot_follow_a_flow_says_so(name: str, predicts: str) -> None:
    with pytest.raises(SettingError, match="euler_trailing"):
        make_scheduler(name, FLOWING | {"prediction_type": predicts})


@pytest.mark.parametrize("name", [OWN, *FLOW])
def test_a_model_on_a_flow_may_say_the_picture_itself(name: str) -> None:
    """Every sampler walks the same path whether the model says e − z or z."""
    z, seen = torch.full((1, 4, 2, 2), 0.5), torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    ends = []
    for predicts in ("flow_prediction", "sample"):
        scheduler, at = make_scheduler(name, {"_class_name": "DPMSolverMultistepScheduler", **FLOWING, "prediction_type": predicts}), seen
        scheduler.set_timesteps(4)
        for time, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            said = z if predicts == "sample" else (at - z) / sigma
            noise = {"generator": torch.Generator().manual_seed(1)} if "generator" in inspect.signature(scheduler.step).parameters else {}
            at = scheduler.step(said, time, at, return_dict=False, **noise)[0]
        ends.append(at)
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-4)
    if name != "dpm++2m_sde":
        torch.testing.assert_close(ends[1], z, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "config"), [("euler_a", SDXL), (OWN, {"_class_name": "UNet2DConditionModel"}), (OWN, {"_class_name": "os"})])
def test_unknown_samplers_are_named(name: str, config: dict[str, object]) -> None:
    with pytest.raises(UnknownNameError, match="サンプラー"):
        make_scheduler(name, config)
