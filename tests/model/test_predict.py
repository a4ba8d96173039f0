"""Numbers belong to the image: not to its batch, its place in it, the number of draws asked for, or a retry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats

import chexmask_u as cu
from chexmask_u import record
from chexmask_u.images.letterbox import prepare
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.draws import without_rare
from chexmask_u.model.dropout import DropoutNet
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.predict import latent_noise
from chexmask_u.model.spread import tangents
from chexmask_u.steps.noise import draw_noise
from chexmask_u.steps.predict import Predictor, implausible

# Pixels of the 1024 frame; what float32 kernels of different batch sizes may differ by.
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def model():
    return cu.load_model("demo")


@pytest.fixture(scope="module")
def images(radiograph):
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8)
    return np.stack([radiograph, np.zeros_like(radiograph), noise, np.full_like(radiograph, 255), radiograph.T])


IDS = ["a/radiograph", "a/black", "a/noise", "a/white", "a/transposed"]


def assert_same(first: cu.Prediction, second: cu.Prediction, atol: float = TOLERANCE) -> None:
    np.testing.assert_allclose(first.landmarks_mean, second.landmarks_mean, atol=atol, rtol=0)
    for name in ("landmarks_std", "landmarks_across", "landmarks_along"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=atol, rtol=0)
    np.testing.assert_allclose(first.latent_mean, second.latent_mean, atol=1e-3, rtol=0)
    np.testing.assert_allclose(first.latent_std, second.latent_std, atol=1e-3, rtol=0)


def pick(prediction: cu.Prediction, rows) -> cu.Prediction:
    return cu.Prediction(*(getattr(prediction, name)[rows] for name in vars(prediction)))


def test_an_image_alone_and_beside_a_black_and_a_noise_image_gives_the_same(model, images):
    together = cu.predict(model, images, IDS, n_samples=20)
    for row, record_id in enumerate(IDS):
        assert_same(pick(together, [row]), cu.predict(model, images[[row]], [record_id], n_samples=20))


def test_order_in_the_batch_does_not_matter(model, images):
    order = [3, 0, 4, 2, 1]
    forward = cu.predict(model, images, IDS, n_samples=20)
    shuffled = cu.predict(model, images[order], [IDS[row] for row in order], n_samples=20)
    assert_same(pick(forward, order), shuffled)


def test_a_retry_gives_the_same_bytes(model, images):
    first, second = (cu.predict(model, images[:2], IDS[:2], n_samples=20) for _ in range(2))
    assert_same(first, second, atol=0)


def test_invariance_holds_for_the_published_architecture_with_random_weights(shared, images):
    model = cu.load_model(str(shared / "golden" / "hybridgnet_skip_256.safetensors"))
    together = cu.predict(model, images[:3], IDS[:3], n_samples=10)
    # The skip lookup jumps where a tap crosses the border; trained weights hardly go there, random ones do.
    for row in range(3):
        alone = cu.predict(model, images[[row]], [IDS[row]], n_samples=10)
        difference = np.abs(alone.landmarks_mean[0] - together.landmarks_mean[row])
        assert np.quantile(difference, 0.99) < TOLERANCE


def test_draws_are_keyed_by_seed_and_record_id_alone():
    fifty = latent_noise("chexpert/x.jpg", 50, seed=0)
    np.testing.assert_array_equal(latent_noise("chexpert/x.jpg", 10, seed=0), fifty[:10])
    assert not np.array_equal(latent_noise("chexpert/x.jpg", 50, seed=1), fifty)
    assert not np.array_equal(latent_noise("chexpert/y.jpg", 50, seed=0), fifty)


def test_draws_are_the_ones_that_earlier_versions_drew():
    """Published numbers hang on these: a library that draws others would change them all in silence."""
    expected = [-0.38242230, -0.01213099, -0.70709276, -1.35362065]
    np.testing.assert_allclose(latent_noise("folder/a.png", 1, seed=0)[0, :4], expected, atol=1e-6)


def test_draws_are_standard_normal_and_independent_of_each_other():
    draws = np.concatenate([latent_noise(f"r/{i}", 50, seed=7) for i in range(100)])
    assert stats.kstest(draws.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(64)).max() < 0.07
    assert stats.kstest(np.stack([latent_noise(f"r/{i}", 1, 0)[0, 0] for i in range(2000)]), "norm").pvalue > 0.01


def test_mean_and_std_are_those_of_the_draws(model, radiograph):
    """Against the plain way: one draw at a time, statistics by numpy in float64."""
    predicted = cu.predict(model, radiograph[None], ["x"], n_samples=8, seed=3)
    side = model.input_size
    shrunk = torch.from_numpy(radiograph).float().reshape(side, 1024 // side, side, 1024 // side).mean(dim=(1, 3))
    with torch.inference_mode():
        mean, log_var, features = model.encode(shrunk[None, None] / 255)
        z = mean + torch.from_numpy(latent_noise("x", 8, 3)) * torch.exp(log_var / 2)
        draws = np.stack([model.decode(z[None, n : n + 1], features)[0, 0].double().numpy() * 1024 for n in range(8)])
    np.testing.assert_allclose(predicted.landmarks_mean[0], draws.mean(0), atol=TOLERANCE)
    np.testing.assert_allclose(predicted.landmarks_std[0], draws.std(0), atol=TOLERANCE)
    covariance = [np.cov(*node.T, ddof=0)[0, 1] for node in draws.transpose(1, 0, 2)]
    np.testing.assert_allclose(predicted.landmarks_xy[0], covariance, rtol=1e-3, atol=TOLERANCE)
    np.testing.assert_allclose(predicted.latent_std[0], np.exp(log_var[0].numpy() / 2), rtol=1e-4)

    offset = draws - np.sort(draws, axis=0)[3]
    length = np.linalg.norm(offset, axis=2)
    offset *= np.minimum(1, 3 * np.sort(length, axis=0)[3] / length.clip(1e-9))[..., None]
    normal = tangents(predicted.landmarks_mean[0])[:, ::-1] * [-1, 1]
    np.testing.assert_allclose(predicted.landmarks_across[0], (offset * normal).sum(2).std(0), rtol=1e-3)
    around = np.square(predicted.landmarks_across[0]) + np.square(predicted.landmarks_along[0])
    np.testing.assert_allclose(around, offset.var(0).sum(1), rtol=1e-3)


def test_a_rare_draw_hardly_moves_the_spread_and_of_round_ones_it_is_the_std():
    draws = torch.from_numpy(np.random.default_rng(0).normal(0, 5, (1, 2000, 120, 2)).astype(np.float32))
    std = draws.std(dim=1, correction=0)
    torch.testing.assert_close(without_rare(draws).std(dim=1, correction=0), std, rtol=0.01, atol=0)
    few, spread = draws[:, :50].clone(), without_rare(draws[:, :50]).std(dim=1, correction=0)
    few[:, 0] += 1000
    assert few.std(dim=1, correction=0).min() > 25 * 5
    assert (without_rare(few).std(dim=1, correction=0) / spread).max() < 1.3


def test_draws_that_are_all_alike_have_no_spread():
    assert not without_rare(torch.ones(1, 50, 120, 2)).any()
    assert not without_rare(torch.ones(1, 1, 120, 2)).any()


def test_the_default_weights_put_landmarks_on_the_organs_of_a_radiograph(shared, model):
    """A demonstration, but not a random one: on real radiographs a landmark is off by a few percent of the image."""
    import cv2

    annotated = np.load(shared / "data" / "jsrt" / "landmarks.npz")
    names = [str(name).removesuffix(".jpg") for name in annotated["names"][:6]]
    images = [cv2.imread(str(shared / "data" / "jsrt" / "images" / f"{name}.jpg"), 0) for name in names]
    predicted = cu.predict(model, np.stack([prepare(image)[0] for image in images]), names, n_samples=10)
    distance = np.linalg.norm(predicted.landmarks_mean - annotated["landmarks"][:6], axis=-1)
    assert distance.mean() < 40


@pytest.mark.parametrize(
    ("images", "ids", "samples", "words"),
    [
        (np.zeros((1, 512, 512), np.uint8), ["a"], 5, "uint8 .B, 1024, 1024."),
        (np.zeros((1, 1024, 1024), np.float32), ["a"], 5, "uint8"),
        (np.zeros((2, 1024, 1024), np.uint8), ["a"], 5, "record_ids"),
        (np.zeros((1, 1024, 1024), np.uint8), ["a"], 0, "n_samples"),
    ],
)
def test_wrong_input_is_refused_in_words(model, images, ids, samples, words):
    with pytest.raises(ValueError, match=words):
        cu.predict(model, images, ids, n_samples=samples)


def test_an_empty_batch_gives_an_empty_prediction(model):
    assert cu.predict(model, np.zeros((0, 1024, 1024), np.uint8), []).landmarks_mean.shape == (0, 120, 2)


def batch(images: dict[str, np.ndarray | None]) -> pa.Table:
    """Rows as `read` leaves them: failed where there is no image."""
    rows = [
        {
            "record_id": name,
            "uri": name,
            "source": "folder",
            "image_id": name,
            "status": record.OK if image is not None else record.FAILED,
            "reason": None if image is not None else "missing",
            "image": None if image is None else image.tobytes(),
        }
        for name, image in images.items()
    ]
    empty = {field.name: None for field in record.READ}
    return pa.Table.from_pylist([empty | row for row in rows], schema=record.READ)


def test_failed_rows_pass_through_in_their_place(radiograph, images):
    step = Predictor(samples=5)
    out = step(batch({"x": None, "a/radiograph": radiograph, "y": None, "a/noise": images[2]}))
    assert out.schema == record.PREDICTED
    assert out["record_id"].to_pylist() == ["x", "a/radiograph", "y", "a/noise"]
    assert out["status"].to_pylist() == ["failed", "ok", "failed", "ok"]
    assert out["reason"].to_pylist() == ["missing", None, "missing", None]
    assert [value is None for value in out["landmarks_mean"].to_pylist()] == [True, False, True, False]
    expected = cu.predict(step.model, images[[0, 2]], ["a/radiograph", "a/noise"], n_samples=5)
    np.testing.assert_allclose(out["landmarks_mean"].to_pylist()[1], expected.landmarks_mean[0], atol=TOLERANCE)
    np.testing.assert_allclose(out["landmarks_std"].to_pylist()[3], expected.landmarks_std[1], atol=TOLERANCE)
    np.testing.assert_allclose(out["uncertainty"].to_pylist()[1], expected.landmarks_std[0].mean(), rtol=1e-4)
    assert step(batch({"x": None}))["status"].to_pylist() == ["failed"]


class AtOnce(HybridGNet):
    """Computes batches as on a GPU."""

    computes_batches = True


def test_batches_that_threads_predict_side_by_side_have_each_their_own_numbers(tiny_weights, images):
    """As a replica on a GPU has several in hand: none is computed from memory that another's images have come to."""
    alone, together = (Predictor(str(tiny_weights), samples=3) for _ in range(2))
    together.model.__class__ = AtOnce
    rng = np.random.default_rng(0)
    batches = []
    for size in (3, 1, 5, 2, 1, 4) * 3:
        chosen = {f"{len(batches)}-{row}": images[rng.integers(len(images))] for row in range(size)}
        batches.append(batch(chosen | {f"{len(batches)}-failed": None}))
    with ThreadPoolExecutor(3) as threads:
        for found, expected in zip(threads.map(together, batches), map(alone, batches), strict=True):
            assert found["record_id"].to_pylist() == expected["record_id"].to_pylist()
            assert found["status"].to_pylist() == expected["status"].to_pylist()
            for mean, other in zip(
                found["landmarks_mean"].to_pylist(), expected["landmarks_mean"].to_pylist(), strict=True
            ):
                assert (mean is None) == (other is None)
                np.testing.assert_allclose(mean or 0.0, other or 0.0, atol=TOLERANCE)


def test_images_of_a_slice_of_a_block_are_its_own(tiny_weights, images):
    """Ray cuts blocks without copying them."""
    step = Predictor(str(tiny_weights), samples=3)
    named = {"x": None, "a": images[0], "y": None, "b": images[2], "c": images[4]}
    whole = step(batch(named))["landmarks_mean"].to_pylist()
    cut = pa.concat_tables([batch(named).slice(2, 2), batch(named).slice(4, 1)])
    np.testing.assert_allclose(step(cut)["landmarks_mean"].to_pylist()[1:], whole[3:], atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "samples"), [(HybridGNet, 3), (AtOnce, 200), (DropoutNet, 3)])
def test_noise_that_readers_drew_changes_no_bit(tmp_path, images, kind, samples):
    torch.manual_seed(0)
    model = kind(input_size=64) if kind is DropoutNet else kind(input_size=64, variant="skip")
    save_model(model, tmp_path / "w.safetensors")
    step = Predictor(str(tmp_path / "w.safetensors"), samples=samples, seed=5)
    step.model.__class__ = kind
    plain = batch({"x": None, "a": images[0], "y": None, "b": images[2], "c": images[4]})
    ready = draw_noise(plain, samples=samples, seed=5, size=model.noise_size)
    for cut in (
        lambda rows: rows,
        lambda rows: rows.slice(1, 1),
        lambda rows: pa.concat_tables([rows.slice(2, 2), rows.slice(4, 1)]),
    ):
        found, expected = (step(cut(rows)).drop_columns(["predict_seconds"]) for rows in (ready, plain))
        assert found.equals(expected)
        assert "ok" in found["status"].to_pylist()


def test_a_diverged_network_fails_the_row_and_not_the_job(radiograph, tmp_path):
    """Weights that pass the checks of a file can still blow up on an image."""
    torch.manual_seed(0)
    diverged = HybridGNet(input_size=64, variant="noskip")
    torch.nn.init.constant_(diverged.encoder.fc_logvar.bias, 1e4)
    save_model(diverged, tmp_path / "diverged.safetensors")
    out = Predictor(str(tmp_path / "diverged.safetensors"), samples=3)(batch({"a": radiograph, "b": None}))
    assert out["status"].to_pylist() == ["failed", "failed"]
    assert out["reason"].to_pylist() == ["invalid_prediction", "missing"]
    assert out["landmarks_mean"].null_count == 2


def test_numbers_that_cannot_be_kept_fail_their_own_record_alone():
    parts = [np.ones((4, *shape), np.float32) for shape in (*((120, 2),) * 2, *((120,),) * 3, (64,), (64,))]
    parts[0][1, 7, 0], parts[0][2, 7, 1], parts[6][2, 9] = 9300, -8200, np.inf
    faults = implausible(cu.Prediction(*parts))
    assert faults[1] == "landmarks span 1 to 9300 px of the 1024 frame"
    assert "finite" in faults[2]
    assert sorted(faults) == [1, 2]


def test_what_is_no_array_or_no_list_of_names_is_told(tiny_weights, radiograph):
    """Three images and the name "abc" would otherwise be those of a, b and c."""
    model = cu.load_model(str(tiny_weights))
    images = np.stack([radiograph] * 3)
    with pytest.raises(TypeError, match=r"images must be a uint8 array .*not a str; of a file, chexmask_u\."):
        cu.predict(model, "x.png", ["x"])
    with pytest.raises(TypeError, match="record_ids must be a list of names, one per image, not 'abc'"):
        cu.predict(model, images, "abc")
    with pytest.raises(TypeError, match="not one with a int in it"):
        cu.predict(model, images, ["a", "b", 3])
    with pytest.raises(TypeError, match=r"model must be what chexmask_u\.load_model gives, not a str"):
        cu.predict("demo", images, ["a", "b", "c"])
    for words in ({"n_samples": "5"}, {"n_samples": 2.5}, {"seed": None}):
        with pytest.raises(TypeError, match=f"{next(iter(words))} must be a whole number, not "):
            cu.predict(model, images, ["a", "b", "c"], **words)


def test_a_prediction_shows_itself_in_one_line(tiny_weights, radiograph):
    prediction = cu.predict(cu.load_model(str(tiny_weights)), radiograph[None], ["a"], n_samples=2)
    assert repr(prediction) == (
        "Prediction(landmarks_mean float32 [1, 120, 2], landmarks_std float32 [1, 120, 2],"
        " landmarks_xy float32 [1, 120], landmarks_across float32 [1, 120], landmarks_along float32 [1, 120],"
        " latent_mean float32 [1, 64], latent_std float32 [1, 64])"
    )
