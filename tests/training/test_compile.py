"""``training.compile``: the same outputs, gradients and names, pictures only, and what is said without a compiler."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy import assert_close, gradients, toy_model, toy_recipe

from mmvicreg.branches.model import Batch, JointModel
from mmvicreg.errors import UserError
from mmvicreg.recipes import load_recipe, recipe_path
from mmvicreg.training.compilation import compile_image_encoders
from mmvicreg.training.setup import build_model, restore_inputs


class Tiny(nn.Module):
    """A convolution and BatchNorm: seconds to compile."""

    out_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x))).mean((2, 3))


def model_of_pictures() -> JointModel:
    """Two views of one branch, its encoder in the place of a ResNet-18."""
    settings = ["inputs.image.size=8", "branches.image.frontend.augmentation=none"]
    recipe = load_recipe(recipe_path("image-image", "shapes", None), {}, settings)
    model = build_model(recipe, restore_inputs(recipe, {"image": {}}))
    torch.manual_seed(0)
    model.branch("image").encoder = Tiny()
    model.branch("image").expander = nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 512)
    )
    return model.train()


def step(model: JointModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch of 8, and the gradients."""
    rng = torch.Generator().manual_seed(1)
    views = {
        f"image/{view}": {
            "pixels": torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=rng),
            "draws": torch.rand(8, 16, generator=rng),
            "view": torch.full((8,), view),
        }
        for view in (0, 1)
    }
    output = model(Batch(torch.arange(8), views))
    output.loss.backward()
    return output.loss.detach(), gradients(model)


@pytest.mark.slow  # compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles for the CPU, which needs g++")
def test_compiled_it_gives_the_same_loss_gradients_and_statistics() -> None:
    plain, compiled = model_of_pictures(), model_of_pictures()
    assert compile_image_encoders(compiled, torch.device("cpu")) == ["image"]
    (loss, expected), (other, found) = step(plain), step(compiled)
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
    assert_close(found, expected, 1e-4)
    states, compiled_states = plain.state_dict(), compiled.state_dict()
    assert states.keys() == compiled_states.keys(), "checkpoints do not tell"
    for key in states:
        torch.testing.assert_close(compiled_states[key], states[key], rtol=1e-5, atol=1e-6)
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] >= 1, "something was compiled"


def test_without_pictures_it_is_refused() -> None:
    model = toy_model(toy_recipe())
    with pytest.raises(UserError, match=r"training\.compile is for encoders of pictures"):
        compile_image_encoders(model, torch.device("cpu"))


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"C\+\+ compiler.*training\.compile=false"):
        compile_image_encoders(model_of_pictures(), torch.device("cpu"))


def test_the_recipe_asks_for_it() -> None:
    path = recipe_path("image-image", "shapes", None)
    assert not load_recipe(path).training.compile
    assert load_recipe(path, {}, ["training.compile=true"]).training.compile
