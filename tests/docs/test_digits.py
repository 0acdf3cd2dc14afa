"""The demo: damaged IDX files are told apart, and a tiny run of the whole program does what it says."""

import gzip
import itertools
import struct
from pathlib import Path

import digits
import pytest
import torch
from mnist_idx import load_mnist, read_idx


def idx(tensor, kind=0x08):
    """The bytes of an IDX file."""
    return bytes([0, 0, kind, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape) + bytes(tensor.flatten().tolist())


def images(count):
    return torch.randint(0, 256, (count, 28, 28), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


def labels(count):
    return (torch.arange(count) % 10).to(torch.uint8)


RATIO = "sweep: one by one / one vmap"

FILES = {
    "train-images-idx3-ubyte": images(40),
    "train-labels-idx1-ubyte": labels(40),
    "t10k-images-idx3-ubyte": images(20),
    "t10k-labels-idx1-ubyte": labels(20),
}


@pytest.fixture
def folder(tmp_path):
    """A whole, tiny MNIST: one file plain, one gzipped, one dotted, one both."""
    part = tmp_path / "mnist"
    part.mkdir()
    contents = [idx(tensor) for tensor in FILES.values()]
    (part / "train-images-idx3-ubyte").write_bytes(contents[0])
    (part / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(contents[1]))
    (part / "t10k-images.idx3-ubyte").write_bytes(contents[2])
    (part / "t10k-labels.idx1-ubyte.gz").write_bytes(gzip.compress(contents[3]))
    return part


def test_mnist_round_trips_under_all_spellings(folder):
    for found, written in zip(load_mnist(folder), FILES.values(), strict=True):
        assert found.dtype == torch.uint8
        assert torch.equal(found, written)


def test_shape_of_any_number_of_dimensions(tmp_path):
    tensor = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    (tmp_path / "f").write_bytes(idx(tensor))
    assert torch.equal(read_idx(tmp_path / "f"), tensor)


WHOLE = idx(images(3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"<html>not found</html>", r"not an IDX file: it starts with 3c 68 74 6d .*web page"),
        (idx(images(3), kind=0x0D), "magic 00 00 0d 03: expected 00 00 08"),
        (b"\0\0\x08\0", "magic 00 00 08 00"),
        (WHOLE[:9], "cut short: a header of 16 bytes was expected, 9 bytes found"),
        (WHOLE[:-1], "cut short: its header says 3 × 28 × 28, so 2368 bytes were expected, 2367 found"),
        (WHOLE + b"\0", "too long: .* 2368 bytes were expected, 2369 found"),
        (idx(images(0)), "is empty: its header says 0 × 28 × 28"),
        (gzip.compress(WHOLE)[:-12], "damaged gzip"),
        (gzip.compress(WHOLE)[:-8] + bytes(8), "damaged gzip .*CRC"),
        (b"\x1f\x8b" + bytes(20), "damaged gzip"),
        (gzip.compress(WHOLE[:-1]), "cut short: .* 2368 bytes were expected, 2367 found"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_file_says_what_was_looked_for_and_where(folder):
    (folder / "t10k-images.idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(folder)
    said = str(caught.value)
    for name in ("t10k-images-idx3-ubyte,", "t10k-images-idx3-ubyte.gz", "t10k-images.idx3-ubyte,", "t10k-images.idx3-ubyte.gz"):
        assert name in said
    assert str(folder) in said


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("train-images-idx3-ubyte", labels(40), r"has 1 dimensions, \(40,\): images have 3"),
        ("train-labels-idx1-ubyte.gz", images(40), r"has 3 dimensions, .*: labels have 1"),
        ("train-images-idx3-ubyte", images(39), "holds 39 images, but .* 40 labels"),
        ("train-images-idx3-ubyte", images(40)[:, 1:], "27 × 28 pixels"),
        ("train-labels-idx1-ubyte.gz", labels(40) + 1, "holds the label 10"),
    ],
)
def test_files_that_do_not_fit_together(folder, name, tensor, message):
    (folder / name).write_bytes(idx(tensor))
    with pytest.raises(ValueError, match=message):
        load_mnist(folder)


def test_a_folder_that_is_not_there_ends_the_program_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="--mnist: .*nowhere is not a folder"):
        digits.main(["--mnist", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--epochs", "0"], "at least 1"), (["--output", "nowhere/x.png"], "nowhere")]
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        digits.main(arguments)
    assert message in capsys.readouterr().err


def test_cnn_is_the_classic_one():
    shapes = [tuple(p.shape) for p in digits.make_cnn().parameters() if p.ndim > 1]
    assert shapes == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]


def test_small_digits_are_split_by_class_and_normalised():
    data = digits.load_small()
    (train, train_labels), (held_out, held_out_labels) = data.train, data.held_out
    assert train.shape == (1437, 1, 28, 28)
    assert held_out.shape == (360, 1, 28, 28)
    spread, mean = torch.std_mean(train)
    torch.testing.assert_close((spread, mean), (torch.tensor(1.0), torch.tensor(0.0)), atol=1e-5, rtol=0)
    shares = [part.bincount() / len(part) for part in (train_labels, held_out_labels)]
    assert (shares[0] - shares[1]).abs().max() < 0.003


def test_shuffled_shows_every_image_once_an_epoch():
    order = digits.shuffled(count=10, batch_size=5, epochs=3)
    assert order.shape == (6, 5)
    for epoch in order.reshape(3, 10):
        assert epoch.sort().values.tolist() == list(range(10))


def test_the_whole_program_on_a_tiny_mnist(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(digits, "SWEPT", torch.tensor([1e-4, 1e-2]))
    monkeypatch.setattr(digits, "SWEEP_BATCH", 4)
    picture = tmp_path / "picture.png"
    digits.main(["--mnist", str(folder), "--epochs", "3", "--output", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip())
    assert table["parameters of the CNN"].strip() == "431,080"
    assert table["steps"].strip() == "3"
    assert table["picture"].strip() == str(Path(picture))
    assert table["sweep: vmap against loop"].endswith("met")
    assert table["sweep: 2 rates, one vmap"].endswith("s of processor time") and "in processor time" in table[RATIO]


def test_adapter_loop_and_functional_training_are_the_same_run():
    """The claim of the demo: the very same transform in both uses. In float64, so that rounding hides nothing."""
    torch.manual_seed(0)
    model = digits.make_cnn().double()
    batches = [(torch.randn(4, 1, 28, 28, dtype=torch.float64), torch.randint(0, 10, (4,))) for _ in range(3)]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    tx = digits.make_transform(steps=3)
    train = digits.make_training(model, tx)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    pure, losses = train(params, torch.tensor(digits.LEARNING_RATE, dtype=torch.float64), batches)

    data = digits.Data("", (x, y), (x, y), batch_size=4, epochs=1)
    run = digits.train_in_a_loop(model, tx, data, torch.arange(12).reshape(3, 4), epochs=1)
    torch.testing.assert_close(torch.tensor(run.losses, dtype=torch.float64), losses, rtol=1e-10, atol=0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), pure[name], rtol=0, atol=1e-10)
        assert not torch.equal(pure[name], params[name])


def test_the_sweep_is_a_loop():
    torch.manual_seed(0)
    model = digits.make_cnn()
    train = digits.make_training(model, digits.make_transform(steps=3))
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = [(torch.randn(4, 1, 28, 28), torch.randint(0, 10, (4,))) for _ in range(3)]
    rates = torch.tensor([1e-4, 1e-3, 1e-2])
    assert digits.vmap_against_loop(train, params, batches, rates) < digits.TOLERANCE

    def drifting(params, lr, batches):
        trained, losses = train(params, lr, batches)
        first = next(calls) == 0
        return {name: p + 1e-6 * first for name, p in trained.items()}, losses

    calls = itertools.count()
    assert digits.vmap_against_loop(drifting, params, batches, rates) > digits.TOLERANCE


def test_best_prefers_accuracy_then_low_loss():
    losses = torch.tensor([[0.1], [0.9], [0.5], [torch.nan]])
    at_once, in_turn = digits.Cost(8.0, 2.0), digits.Cost(4.0, 3.0)  # By the clock of a machine that was busy meanwhile.
    sweep = digits.Sweep(torch.arange(4.0), losses, torch.tensor([0.5, 0.9, 0.9, 0.9]), at_once, in_turn, 0.0)
    assert sweep.best == 2
    assert sweep.ratio == 1.5
