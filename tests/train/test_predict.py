from __future__ import annotations

import csv
import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from torchdfa.errors import RunError, UsageError
from torchdfa.train import models
from torchdfa.train.export import load_model, save
from torchdfa.train.photos import decode
from torchdfa.train.predict import predict

CLASSES = ("bee", "cat", "dog")


@pytest.fixture
def run(tmp_path):
    """A run folder with a small model of 8x8 RGB images."""
    folder = tmp_path / "run"
    folder.mkdir()
    args = {"classes": 3, "channels": 3, "image_size": 8, "fc_width": 4}
    torch.manual_seed(0)
    save(folder, models.build("mlp", **args), model_name="mlp", model_args=args, classes=CLASSES,
         mean=(0.5,) * 3, std=(0.25,) * 3, image_size=8)  # fmt: skip
    return folder


def photo(path, seed=0, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Nine photos in three classes, one of them broken."""
    for i, name in enumerate(CLASSES):
        for j in range(3):
            photo(tmp_path / "photos" / name / f"{j}.png", 10 * i + j)
    (tmp_path / "photos" / "dog" / "1.png").write_bytes(b"no photo at all")
    return tmp_path / "photos"


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def expected(run, path):
    logits = load_model(run)(decode(path, 8)[None])[0].detach().double()
    return logits.softmax(0)


def test_each_photo_gets_what_the_model_says(run, folder, tmp_path):
    out = tmp_path / "out" / "found.csv"
    found = predict(run, folder, out)
    assert [photo.path for photo in found.photos] == sorted(folder.rglob("*.png"))
    lines = rows(out)
    assert len(lines) == 9
    for line, done in zip(lines, found.photos, strict=True):
        assert line["path"] == str(done.path)
        assert line["true_class"] == done.path.parent.name
        if done.found is None:
            continue
        probabilities = expected(run, done.path)
        order = probabilities.argsort(descending=True).tolist()
        assert [line["class"], line["class_2"], line["class_3"]] == [CLASSES[i] for i in order]
        written = [float(line[key]) for key in ("probability", "probability_2", "probability_3")]
        assert written == pytest.approx([float(probabilities[i]) for i in order], abs=1e-5)
        assert done.found.label == line["class"]


def test_a_broken_photo_is_named_with_its_reason_and_the_rest_go_on(run, folder, tmp_path):
    found = predict(run, folder, tmp_path / "found.csv")
    broken = [line for line in rows(tmp_path / "found.csv") if not line["class"]]
    assert [line["path"] for line in broken] == [str(folder / "dog" / "1.png")]
    assert broken[0]["left_out_because"].startswith("its content is no image")
    assert broken[0]["probability"] == broken[0]["probability_3"] == ""
    assert "8 photo(s) classified, 1 left out: " in str(found)
    assert "dog/1.png (its content is no image" in str(found)


def test_known_classes_give_a_balanced_accuracy(run, folder):
    found = predict(run, folder)
    right = {name: [] for name in CLASSES}
    for done in found.photos:
        if done.found:
            right[done.true_class].append(done.found.label == done.true_class)
    everything = [hit for hits in right.values() for hit in hits]
    assert found.figures["samples"] == 8
    assert found.figures["top1"] == pytest.approx(100 * sum(everything) / 8)
    recalls = [sum(hits) / len(hits) for hits in right.values()]
    assert found.figures["balanced_accuracy"] == pytest.approx(100 * sum(recalls) / 3)
    assert f"balanced accuracy {found.figures['balanced_accuracy']:.1f} %" in str(found)
    assert "% right of the 8 photo(s) in a folder named like a class (95 % interval" in str(found)


def test_folders_that_are_no_class_give_none(run, tmp_path):
    photo(tmp_path / "new" / "holiday" / "a.png")
    photo(tmp_path / "new" / "b.png")
    found = predict(run, tmp_path / "new")
    assert found.figures is None
    assert [done.true_class for done in found.photos] == [None, None]
    assert str(found).splitlines()[-1] == "2 photo(s) classified"


def test_photos_that_were_trained_on_are_not_counted(run, folder, tmp_path):
    names = ["bee/0.png", "bee/1.png", "cat/0.png"]
    config = {"format": 1, "data": {"source": {"path": str(folder), "train_files": names}}}
    (run / "config.json").write_text(json.dumps(config))
    found = predict(run, folder, tmp_path / "found.csv")
    assert found.figures["samples"] == 5
    assert "3 of the photos were trained on and are not counted" in str(found)
    assert [line["path"] for line in rows(tmp_path / "found.csv") if line["trained_on"] == "yes"] == [
        str(folder / name) for name in names
    ]
    only = predict(run, folder / "bee" / "0.png")
    assert (only.figures, only.photos[0].trained_on) == (None, True)


def test_one_photo(run, folder):
    found = predict(run / "model.safetensors", folder / "cat" / "2.png")
    assert len(found.photos) == 1
    probabilities = expected(run, folder / "cat" / "2.png")
    assert found.photos[0].found.label == CLASSES[int(probabilities.argmax())]
    assert found.figures is None
    percent = 100 * float(probabilities.max())
    assert str(found).splitlines()[0] == f"{folder}/cat/2.png: {found.photos[0].found.label} ({percent:.1f} %)"


def test_one_photo_by_the_loaded_model(run, folder):
    path = folder / "cat" / "2.png"
    model = load_model(run)
    with Image.open(path) as opened:
        assert model.predict(opened) == model.predict(path) == model.predict(str(path))
    assert model.predict(path).probability == pytest.approx(float(expected(run, path).max()))
    with pytest.raises(UsageError, match="cannot be used"):
        model.predict(folder / "dog" / "1.png")


def test_predicting_in_train_mode_changes_nothing(tmp_path):
    args = {"classes": 3, "channels": 3, "image_size": 8, "fc_width": 4, "fc_batch_norm": True}
    torch.manual_seed(0)
    save(tmp_path, models.build("cnn", **args), model_name="cnn", model_args=args, classes=CLASSES,
         mean=(0.5,) * 3, std=(0.25,) * 3, image_size=8)  # fmt: skip
    path, model = photo(tmp_path / "a.png"), load_model(tmp_path).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.predict(path) == load_model(tmp_path).predict(path)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_more_photos_than_one_chunk_keep_their_order(run, tmp_path, monkeypatch):
    monkeypatch.setattr("torchdfa.train.predict._CHUNK", 4)
    paths = [photo(tmp_path / "many" / f"{i:02d}.png", i) for i in range(11)]
    paths[5].write_bytes(b"")
    found = predict(run, tmp_path / "many")
    assert [done.path for done in found.photos] == paths
    for i in (0, 4, 6, 10):
        assert found.photos[i].found.probability == pytest.approx(float(expected(run, paths[i]).max()), abs=1e-5)
    assert found.photos[5].found is None


def test_all_photos_broken_is_said(run, tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    found = predict(run, tmp_path, tmp_path / "found.csv")
    assert str(found).startswith("0 photo(s) classified, 7 left out: ")
    assert str(predict(run, tmp_path)) == str(found)
    assert str(found).endswith("; and 2 more")


def test_names_of_photos_are_no_formulas(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "=cmd|' !A0" / "a.png")
    predict(run, "=cmd|' !A0", "found.csv")
    assert rows(tmp_path / "found.csv")[0]["path"] == "'=cmd|' !A0/a.png"


def test_photos_are_untouched(run, folder, tmp_path):
    def hashes():
        return {p: hashlib.sha256(p.read_bytes()).digest() for p in [*folder.rglob("*.png"), *run.iterdir()]}

    before = hashes()
    predict(run, folder, tmp_path / "found.csv")
    assert hashes() == before


def test_what_cannot_be_used_is_named(run, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, match in (
        ((tmp_path / "no run", folder), "no run does not exist; pass the folder of a finished run"),
        ((folder, folder), r"model\.safetensors does not exist"),
        ((folder / "cat" / "0.png", folder), "damaged or no safetensors file"),
        ((run, tmp_path / "nowhere"), "nowhere does not exist; pass a photo or a folder of photos"),
        ((run, tmp_path / "empty"), "holds no photos"),
        ((run, folder, folder / "cat" / "0.png"), r"--out must name a \.csv file"),
    ):
        with pytest.raises(UsageError, match=match) as caught:
            predict(*arguments)
        assert "\n" not in str(caught.value)


def test_out_in_a_run_folder_is_refused(run, folder):
    (run / "config.json").write_text('{"format": 1}')
    with pytest.raises(UsageError, match="lies in a run folder"):
        predict(run, folder, run / "found.csv")


def test_a_failed_write_is_named_and_the_old_file_kept(run, folder, tmp_path):
    (tmp_path / "found.csv").mkdir()
    with pytest.raises(UsageError, match=r"must name a \.csv file"):
        predict(run, folder, tmp_path / "found.csv")
    (tmp_path / "old.csv").write_text("old")
    (run / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="damaged"):
        predict(run, folder, tmp_path / "old.csv")
    assert (tmp_path / "old.csv").read_text() == "old"


def test_a_model_that_went_wrong_predicts_nothing(run, folder, tmp_path):
    model = load_model(run)
    for layer in model.network.classifier[::2]:
        layer.weight.data.fill_(0)
        layer.bias.data.fill_(1)
    model.network.classifier[-1].weight.data.fill_(3e38)  # times 4 units is beyond float32
    with pytest.raises(RunError, match="not finite"):
        model.predict(folder / "cat" / "0.png")
