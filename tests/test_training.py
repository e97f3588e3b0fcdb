"""Training through the same objects that train.py builds: learning, exact resume, averaging, export."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import TINY_PRIOR_SPEC as SPEC

from codiffuse.errors import InputError
from codiffuse.priors import zoo
from codiffuse.schedule import add_noise, linear_schedule, tweedie_x0
from codiffuse.simulate.motion import RandomPathKernels
from codiffuse.training.datamodules import CountedSampler, image_crops, simulated
from codiffuse.training.export import export
from codiffuse.training.kernel_denoiser import KernelDenoiserModule
from codiffuse.training.run import fit, newest_checkpoint
from codiffuse.training.score import VALIDATION_SIGMAS, ScoreModule
from codiffuse.training.variance import VariationalBound

TRAINER = {
    "accelerator": "cpu",
    "max_steps": 6,
    "val_check_interval": 3,
    "enable_progress_bar": False,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


def data(pictures):
    return image_crops(str(pictures), crop=16, holdout=1, validation_crop=32, batch_size=2)


def run(pictures, run_dir, **trainer):
    options = {**TRAINER, **trainer}
    callbacks = options.pop("callbacks", ())
    resume = options.pop("resume", "auto")
    module = ScoreModule(SPEC, learning_rate=3e-3, warmup_steps=1)
    return fit(module, data(pictures), run_dir, trainer=options, callbacks=callbacks, resume=resume)


def weights_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_resume_in_the_middle_is_exact(pictures, tmp_path):
    import pytorch_lightning as pl

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                raise KeyboardInterrupt

    whole = run(pictures, tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(pictures, tmp_path / "parts", callbacks=[Stop()])
    assert torch.load(newest_checkpoint(tmp_path / "parts/checkpoints"), weights_only=True)["global_step"] == 4
    parts = run(pictures, tmp_path / "parts")
    first, second = (torch.load(path, weights_only=True) for path in (whole, parts))
    for key, value in first["state_dict"].items():  # averaged weights
        assert torch.equal(value, second["state_dict"][key]), key
    for key, value in first["current_model_state"].items():  # raw weights
        assert torch.equal(value, second["current_model_state"][key]), key
    assert (tmp_path / "parts/metrics.part1.csv").exists()  # the log of the first part is kept


def test_resume_words(pictures, tmp_path):
    with pytest.raises(InputError, match="resume=auto"):
        run(pictures, tmp_path / "run", resume="must")
    run(pictures, tmp_path / "run", max_steps=1)
    with pytest.raises(InputError, match="run_id"):
        run(pictures, tmp_path / "run", resume="never")


def test_newest_checkpoint_passes_over_a_torn_one(pictures, tmp_path, caplog):
    saved = run(pictures, tmp_path / "run", max_steps=2)
    torn = saved.parent / "step=9.ckpt"
    torn.write_bytes(saved.read_bytes()[:1000])
    found = newest_checkpoint(saved.parent)
    assert found != torn
    assert "unreadable" in caplog.text


def test_it_learns(pictures):
    module = ScoreModule(SPEC)
    torch.manual_seed(0)
    batch = torch.stack([data(pictures).train[i] for i in range(8)])
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    losses = []
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        loss = module.loss(batch, module.draw_alpha_bar(len(batch), generator), generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_noise_law_covers_the_chain_that_samplers_start_from():
    module = ScoreModule(SPEC)
    alpha_bar = module.draw_alpha_bar(20_000, torch.Generator().manual_seed(0))
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert sigma.min() < 0.011  # the last step of the linear chain
    assert sigma.max() > 150  # its first
    assert float(sigma.log().median()) == pytest.approx(-0.98, abs=0.15)


def test_weights_are_averaged(pictures, tmp_path):
    checkpoint = torch.load(run(pictures, tmp_path / "run"), weights_only=True)
    key = "model.network.input_blocks.0.0.weight"
    assert not torch.equal(checkpoint["state_dict"][key], checkpoint["current_model_state"][key])


def test_export_and_init(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("CODIFFUSE_ZOO", str(tmp_path / "zoo"))
    checkpoint = run(pictures, tmp_path / "run")
    folder = export(checkpoint, "mine")
    assert folder == tmp_path / "zoo" / "mine"
    card = (folder / "README.md").read_text()
    assert "6 training steps" in card
    assert "val/psnr_sigma_0.1" in card
    prior = zoo.load("mine", "prior")
    averaged = weights_of(checkpoint)["model.network.input_blocks.0.0.weight"]
    torch.testing.assert_close(prior.network.state_dict()["input_blocks.0.0.weight"], averaged.half().float())
    started = ScoreModule(SPEC, init="zoo:mine")
    torch.testing.assert_close(started.model.network.state_dict()["input_blocks.0.0.weight"], averaged.half().float())


def test_kernel_denoiser_trains_and_exports(tmp_path):
    spec = {"kind": "kernel_denoiser", "network": {"name": "DnCNN", "width": 8, "depth": 3, "bias": False}}
    module = KernelDenoiserModule(spec, learning_rate=1e-3, warmup_steps=1)
    kernels = simulated(RandomPathKernels(9), validation_samples=4, batch_size=4)
    checkpoint = fit(module, kernels, tmp_path / "run", trainer=TRAINER)
    denoiser = zoo.load(export(checkpoint, str(tmp_path / "zoo/mine")), "kernel_denoiser")
    assert denoiser(torch.full((2, 1, 9, 9), 1 / 81), torch.tensor([1e-3, 1e-2])).shape == (2, 1, 9, 9)


def test_simulated_depend_on_their_number_alone():
    kernels = simulated(RandomPathKernels(9), seed=3)
    assert torch.equal(kernels.train[7], kernels.train[7])
    assert not torch.equal(kernels.train[7], kernels.train[8])
    assert not torch.equal(kernels.train[0], kernels.validation[0])


def test_accumulated_batches_have_their_own_noise(pictures):
    module = ScoreModule(SPEC)
    module.trainer = SimpleNamespace(accumulate_grad_batches=2, global_step=3, global_rank=0)
    module._fabric = None
    drawn = [torch.rand(1, generator=module.step_generator(index)) for index in range(4)]
    assert drawn[0] != drawn[1]
    assert drawn[0] == drawn[2]  # the same step after a resume, whatever the count of batches


def test_a_checkpoint_with_pickled_objects_does_not_stop_a_resume(tmp_path, caplog):
    torch.save({"global_step": 9, "law": RandomPathKernels(9)}, tmp_path / "foreign.ckpt")
    assert newest_checkpoint(tmp_path) is None
    assert "unreadable" in caplog.text


def test_ranks_share_the_stream():
    streams = [iter(CountedSampler(10, rank, 3)) for rank in range(3)]
    drawn = [next(stream) for _ in range(4) for stream in streams]
    assert drawn == list(range(10, 22))


def test_the_hybrid_loss_is_the_released_one(fixture_npz):
    recorded = fixture_npz("numeric/guided_diffusion_training_loss.npz")
    x0, noise, output, steps = (torch.from_numpy(recorded[name]) for name in ("x0", "noise", "model_out", "t"))
    bound = VariationalBound(linear_schedule())
    alpha_bar = bound.alpha_bar(steps)
    assert torch.equal(bound.nearest(alpha_bar), steps)
    x_t = add_noise(x0, noise, alpha_bar)
    eps, variance = output.chunk(2, 1)
    found = bound(x0, x_t, tweedie_x0(x_t, eps, alpha_bar), (variance + 1) / 2, steps)
    torch.testing.assert_close(found, torch.from_numpy(recorded["hybrid_mse/vb"]), atol=1e-5, rtol=0)
    mse = (eps - noise).square().flatten(1).mean(1)
    torch.testing.assert_close(mse + found, torch.from_numpy(recorded["hybrid_mse/loss"]), atol=1e-5, rtol=0)


def test_the_bound_trains_the_variance_alone():
    bound, generator = VariationalBound(linear_schedule()), torch.Generator().manual_seed(0)
    x0 = torch.rand(3, 1, 4, 4, generator=generator) * 2 - 1
    x0_hat, fraction = torch.zeros_like(x0, requires_grad=True), torch.full_like(x0, 0.5, requires_grad=True)
    bound(x0, x0, x0_hat, fraction, torch.tensor([1, 300, 999])).sum().backward()
    assert x0_hat.grad is None
    assert bool((fraction.grad[:2] != 0).all())  # at the last step the two variances are the same


LEARNED = {
    "kind": "prior",
    "network": SPEC["network"] | {"in_channels": 1, "out_channels": 2},
    "parameterization": {"name": "EdmPrediction"},
    "time": {"name": "LogSigmaTime"},
    "space": {"name": "KernelSpace"},
    "learned_variance": True,
}


@pytest.mark.parametrize("law", ["log_normal", "uniform_steps"])
def test_a_learned_variance_is_trained_at_steps_of_the_chain(law):
    module = ScoreModule(LEARNED, noise_law=law)
    alpha_bar = module.draw_alpha_bar(64, torch.Generator().manual_seed(0))
    chain = linear_schedule().alpha_bar
    assert bool(torch.isin(alpha_bar, chain).all())
    kernels = torch.rand(64, 1, 8, 8) / 32
    loss = module.loss(kernels, alpha_bar, torch.Generator().manual_seed(0))
    assert loss.shape == (64,)
    loss.mean().backward()
    variance_weights = module.model.network.out[-1].weight.grad[1]
    assert float(variance_weights.abs().sum()) > 0


def learned_module(fraction=None):
    """One whose output is not zero; with a `fraction`, that is its variance fraction everywhere."""
    torch.manual_seed(0)
    module = ScoreModule(LEARNED)
    final = module.model.network.out[-1]
    torch.nn.init.normal_(final.weight, std=0.3)
    if fraction is not None:
        final.weight.data[1], final.bias.data[1] = 0, 2 * fraction - 1
    return module


def test_the_loss_is_the_error_of_the_output_and_once_the_bound_of_its_step():
    """All of it made again from the network's output: the noise, x0-hat from that output, the step of each sample."""
    module, steps = learned_module(), torch.tensor([0, 3, 120, 500, 999])
    chain = linear_schedule()
    alpha_bar = chain.alpha_bar[steps]
    kernels = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) / 32
    with torch.no_grad():
        found = module.loss(kernels, alpha_bar, torch.Generator().manual_seed(2))
        x0 = module.model.space.encode(kernels)
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
        x_t = add_noise(x0, eps, alpha_bar)
        output, variance = module.model.output(x_t, alpha_bar).chunk(2, 1)
        denoised = module.model.denoise(x_t, alpha_bar)
    error = (output - module.model.parameterization.target(x0, eps, alpha_bar)).square().mean((1, 2, 3))
    torch.testing.assert_close(denoised.variance_fraction, (variance + 1) / 2)
    expected = VariationalBound(chain)(x0, x_t, denoised.x0, denoised.variance_fraction, steps)
    torch.testing.assert_close(found, error + expected)
    assert float(expected.max()) > 0.1 * float(error.max())  # so that the sum tells its weight


def validated(module):
    """What a validation step logs."""
    logged = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    kernels = torch.stack([RandomPathKernels(9)(np.random.default_rng(seed)) for seed in range(4)])
    with torch.no_grad():
        module.validation_step(kernels, 0)
    return logged


def test_a_validation_tells_a_good_variance_from_a_bad_one():
    """The fraction 0 is beta~: nothing saved. This network's x0-hat is far off, so that at little noise, where beta~ is
    well below beta, a larger variance pays; one that is far beyond both does not."""
    known, large, broken = (validated(learned_module(fraction)) for fraction in (0.0, 0.3, 40.0))
    names = [name for name in known if name.startswith("val/bound_saved")]
    assert names == [f"val/bound_saved_sigma_{sigma:g}" for sigma in VALIDATION_SIGMAS]
    assert [known[name] for name in names] == [0] * len(names)
    assert large["val/bound_saved_sigma_0.02"] > 0.01
    assert broken["val/bound_saved_sigma_0.02"] < 0
    for logged in (large, broken):
        for sigma in VALIDATION_SIGMAS:
            of = f"sigma_{sigma:g}"
            saved = known[f"val/bound_{of}"] - logged[f"val/bound_{of}"]
            assert logged[f"val/bound_saved_{of}"] == pytest.approx(saved, rel=1e-3, abs=1e-5)
            assert logged[f"val/psnr_{of}"] == known[f"val/psnr_{of}"]  # which does not see it


def test_a_prior_without_a_learned_variance_has_no_such_number():
    spec = LEARNED | {"network": LEARNED["network"] | {"out_channels": 1}, "learned_variance": False}
    assert not [name for name in validated(ScoreModule(spec)) if "bound" in name]


def test_an_unknown_noise_law_is_refused():
    with pytest.raises(InputError, match="noise_law log_normal or uniform_steps, got 'flat'"):
        ScoreModule(SPEC, noise_law="flat")
