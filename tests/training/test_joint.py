"""Joint training on one data set: image-image and image-text on one ResNet, of the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from joint_runs import (
    assert_micro_batches_are_exact,
    assert_same_state,
    first_batch,
    joint_recipe,
    loss_of,
    losses,
    start,
    stop_and_resume,
)
from picture_runs import write_pictures

from mmvicreg.errors import UserError
from mmvicreg.registry import PROTOCOLS
from mmvicreg.runs import open_run


def test_the_loss_is_the_formula_over_three_nodes_and_two_edges(tiny_shapes: Path, tmp_path: Path) -> None:
    settings = ("training.precision=fp64", "branches.image.variance=10", "edges.1.invariance=7")
    trainer = start(tmp_path / "run", joint_recipe(tiny_shapes, *settings))
    output = trainer.model(first_batch(trainer))
    assert list(output.embeddings) == ["image/0", "image/1", "text"]
    assert not torch.equal(output.embeddings["image/0"], output.embeddings["image/1"])
    expected = loss_of(
        output.embeddings,
        [("image/0", "text", 25), ("image/0", "image/1", 7)],
        {"image/0": 10, "image/1": 10, "text": 25},
        nu=1,
    )
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-10)
    assert {"invariance/image/0-text", "invariance/image/0-image/1"} <= output.terms.keys()


def test_an_edge_given_twice_is_refused(tiny_shapes: Path) -> None:
    with pytest.raises(UserError, match="text-image is there twice"):
        joint_recipe(tiny_shapes, "edges=[{a: image, b: text}, {a: text, b: image}]")


def test_micro_batches_have_the_whole_batch_s_gradient(tiny_shapes: Path, tmp_path: Path) -> None:
    frozen = [f"branches.{name}.expander.norm=none" for name in ("image", "text")]
    frozen += ["training.precision=fp64", "branches.image.freeze=batchnorm"]
    trainer = start(tmp_path / "run", joint_recipe(tiny_shapes, *frozen))
    assert_micro_batches_are_exact(trainer)


def test_a_joint_run_resumes_in_the_same_bits_and_its_branches_are_judged(
    tiny_shapes: Path, tmp_path: Path
) -> None:
    recipe = joint_recipe(tiny_shapes, "training.epochs=2")
    found, expected = stop_and_resume(recipe, tmp_path, at=7)
    assert_same_state(found, expected)
    run = open_run(tmp_path / "run")
    report = PROTOCOLS.load("retrieval")(run)
    assert report["captions"] == 150
    pictures = write_pictures(tmp_path / "pictures")
    judged = PROTOCOLS.load("knn")(run, dataset="image-folder", data_root=pictures, k=[5])
    assert judged["branch"] == "image"
    assert 0 <= judged["k"]["5"]["top1"] <= 100


@pytest.mark.parametrize(
    "method", ["barlow_twins", "vse", "simclr", "{name: wmse, shrinkage: 0.5}", "{name: swav, prototypes: 8}"]
)
def test_other_methods_take_both_edges(tiny_shapes: Path, tmp_path: Path, method: str) -> None:
    trainer = start(tmp_path / "run", joint_recipe(tiny_shapes, f"objective={method}"))
    output = trainer.model(first_batch(trainer))
    output.loss.backward()
    shown = " ".join(output.terms)
    assert "image/0-image/1" in shown
    assert "image/0-text" in shown
    for name in ("image", "text"):
        gradient = trainer.model.branch(name).expander[-1].weight.grad
        assert gradient is not None
        assert float(gradient.norm()) > 0


def test_byol_refuses_the_edge_between_branches_by_name(tiny_shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the edge image/0-text joins two branches"):
        start(tmp_path / "run", joint_recipe(tiny_shapes, "objective=byol"))


def test_two_processes_follow_one_jointly(tiny_shapes: Path, tmp_path: Path) -> None:
    recipe = joint_recipe(tiny_shapes, "training.precision=fp64", "training.epochs=2")
    one = losses(recipe, tmp_path / "one")
    two = losses(recipe, tmp_path / "two", "--devices", "2")
    assert len(one) == 10
    assert one == pytest.approx(two, rel=1e-7)
    assert np.isfinite(one).all()
