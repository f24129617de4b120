"""CIFAR10-S, CelebA and WIDER Attribute: miniatures of their layouts, whole and in part."""

import hashlib
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from conftest import CELEBA, celeba_attributes, colour, wider_people
from PIL import Image

import data as D
import readers

PARITY = np.load(Path(__file__).parent / "parity" / "fair_kd.npz")
PARTS = ("train", "val", "test")


def number_of(name):
    """The number of a picture in a miniature, from its file name."""
    return int("".join(filter(str.isdigit, Path(name.split()[0]).stem.split("_")[-1])))


def everything(data):
    """(part, id, class name, group name, mean colour) of every picture."""
    return [
        (part, name, data.classes[label], data.group_names[group], image.tolist())
        for part, split in data.splits.items()
        for name, label, group, image in zip(
            split.ids, split.labels, split.groups, split.images.float().mean(dim=(2, 3))
        )
    ]


# -------------------------------------------------------------------------------------- CIFAR10-S


def test_grey_is_that_of_the_authors_and_of_pil():
    grey = readers.in_grey(PARITY["cifar10s/rgb"])
    np.testing.assert_array_equal(grey, PARITY["cifar10s/gray"])
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    meant = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
    np.testing.assert_array_equal(readers.in_grey(image), meant)


@pytest.mark.parametrize("skew", [0.95, 0.8])
def test_cifar10s_draw_is_that_of_the_authors(tmp_path, monkeypatch, skew):
    labels = np.arange(50_000) % 10
    blank = {part: np.zeros((n, 1, 1, 3), np.uint8) for part, n in (("train", 50_000), ("test", 9))}
    names = {"train": labels, "test": labels[:9]}
    monkeypatch.setattr(readers, "cifar10_batches", lambda *_: (blank, names))
    (tmp_path / "cifar-10-batches-py").mkdir()
    table = readers.read_cifar10s(tmp_path, "label", "group", None, False, skew)
    want = PARITY[f"cifar10s/domain_gray_for_label_i_mod_10_p{skew}"]
    np.testing.assert_array_equal(table.groups[:50_000], want)
    assert table.groups[:50_000].sum() == 25_000
    majority = PARITY["cifar10s/colour_majority_classes"]
    share = [(table.groups[:50_000][labels == c] == 0).mean() for c in range(10)]
    np.testing.assert_allclose(share, np.where(np.isin(range(10), majority), skew, 1 - skew))
    ## Validation is a tenth of each class and style, so that it is skewed like the training.
    cells = 2 * table.labels + table.groups
    val, train = (np.bincount(cells[table.split == p], minlength=20) for p in ("val", "train"))
    np.testing.assert_array_equal(9 * val, train)
    assert val.sum() == 5000


def test_cifar10s_folders(cifar10):
    data = D.load("cifar10s", cifar10)
    rows = everything(data)
    assert {part: len(data[part]) for part in PARTS} == {"train": 180, "val": 20, "test": 40}
    for _, name, label, group, shown in rows:
        assert name.split()[0].split("/")[1] == label and name.split()[1] == group
        meant = np.array(colour(number_of(name)), np.uint8)
        np.testing.assert_array_equal(shown, readers.in_grey(meant) if group == "grey" else meant)
    copies = {(name.split()[0], group) for part, name, _, group, _ in rows if part == "test"}
    assert len(copies) == 40 and len(set(data["test"].subjects)) == 20
    training = [name.split()[0] for part, name, *_ in rows if part != "test"]
    assert len(set(training)) == 200  # each once: colour or grey, training or validation
    greys = sum(group == "grey" for part, *_, group, _ in rows if part != "test")
    assert data.notes["of them in grey"] == greys == 100
    assert data.notes["of them held out for validation"] == 20


def test_cifar10s_skew(cifar10):
    usual, other = D.load("cifar10s", cifar10), D.load("cifar10s", cifar10, skew=0.75)
    cats = other["train"].labels == 3
    assert (other["train"].groups[cats] == 0).float().mean() == pytest.approx(0.75, abs=0.05)
    assert usual.hash("train", groups=False) != other.hash("train", groups=False)
    assert D.load("cifar10s", cifar10, skew=0.95).hash() == usual.hash()
    for wrong in (0, 1, -0.5, float("nan")):
        with pytest.raises(D.InputError, match="--skew .* between 0 and 1"):
            D.load("cifar10s", cifar10, skew=wrong)
    with pytest.raises(D.InputError, match="--skew is for cifar10s alone"):
        D.load("toy", skew=0.9)


@pytest.fixture
def batches(cifar10, tmp_path, monkeypatch):
    """The miniature as the official batches; their MD5 sums stand where torchvision looks."""
    folder = tmp_path / "official" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    lists = {}
    for part in ("train", "test"):
        files = sorted((cifar10 / part).glob("*/*.png"), key=lambda p: p.name)
        pixels = np.stack([np.asarray(Image.open(f)).transpose(2, 0, 1).ravel() for f in files])
        labels = [readers.CIFAR_CLASSES.index(f.parent.name) for f in files]
        names = [f"data_batch_{k}" for k in range(1, 6)] if part == "train" else ["test_batch"]
        lists[part] = [
            write(name, {"data": d, "labels": y.tolist()})
            for name, d, y in zip(
                names, np.split(pixels, len(names)), np.split(np.array(labels), len(names))
            )
        ]
    meta = write("batches.meta", {"label_names": readers.CIFAR_CLASSES})
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", lists["train"])
    monkeypatch.setattr(kind, "test_list", lists["test"])
    monkeypatch.setattr(kind, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return folder.parent


def test_cifar10s_batches_give_the_pictures_of_the_folders(cifar10, batches):
    folders, official = D.load("cifar10s", cifar10), D.load("cifar10s", batches)
    for part in PARTS:
        seen = [
            sorted((number_of(name), *rest[1:]) for p, name, *rest in everything(data) if p == part)
            for data in (folders, official)
        ]
        assert [row[0] for row in seen[0]] == [row[0] for row in seen[1]]
        assert seen[0] == seen[1]
    assert official["test"].images.shape == (40, 3, 32, 32)
    few = D.load("cifar10s", batches, smoke=True)
    assert few["test"].ids == official["test"].ids


def test_cifar10s_archive_is_checked_and_unpacked(batches, monkeypatch, tmp_path):
    usual, kind = D.load("cifar10s", batches).hash(), torchvision.datasets.CIFAR10
    archive = batches / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/x.tar.gz")  # nobody listens there
    shutil.rmtree(batches / "cifar-10-batches-py")
    assert D.load("cifar10s", batches, download=True).hash() == usual
    shutil.rmtree(batches / "cifar-10-batches-py")
    archive.write_bytes(archive.read_bytes()[:-100])  # truncated: it is fetched again, in vain
    with pytest.raises(D.InputError, match="cannot be downloaded .*cs.toronto.edu") as error:
        D.load("cifar10s", batches, download=True)
    assert "\n" not in str(error.value)


def test_cifar10s_broken_batch_is_refused(batches):
    file = batches / "cifar-10-batches-py" / "data_batch_3"
    whole = file.read_bytes()
    for spoil in (lambda: file.write_bytes(whole[:-50]), file.unlink):
        spoil()
        with pytest.raises(D.InputError, match="cifar-10-batches-py is damaged .*--download"):
            D.load("cifar10s", batches)
    with pytest.raises(D.InputError, match=f"pass {batches} as --data-dir"):
        D.load("cifar10s", batches / "cifar-10-batches-py")
    (batches.parent / "above").mkdir()
    batches.rename(batches.parent / "above" / "official")
    with pytest.raises(D.InputError, match=f"pass {batches.parent}/above/official as --data-dir"):
        D.load("cifar10s", batches.parent / "above")


# ----------------------------------------------------------------------------------------- CelebA


def test_celeba_labels_groups_splits_and_persons(celeba):
    data = D.load("celeba", celeba, 16)
    assert data.classes == ["not Attractive", "Attractive"]
    assert data.group_names == ["not Male", "Male"]
    assert {part: len(data[part]) for part in PARTS} == {"train": 54, "val": 18, "test": 18}
    for part, name, label, group, shown in everything(data):
        n = number_of(name)
        assert part == ("train" if n <= 54 else "val" if n <= 72 else "test")
        truth = dict(zip(CELEBA, celeba_attributes(n)))
        assert data.classes.index(label) == truth["Attractive"]
        assert data.group_names.index(group) == truth["Male"]
        np.testing.assert_allclose(shown, colour(n), atol=4)
    numbers = [number_of(name) for name in data["val"].ids]
    assert data["val"].subjects.tolist() == [str(100 + (n - 1) // 3) for n in numbers]


def test_celeba_attributes_are_crossed(celeba):
    data = D.load("celeba", celeba, 16, target="Smiling", sensitive="Young+Male")
    assert data.group_names == [
        "not Young, not Male", "not Young, Male", "Young, not Male", "Young, Male"
    ]  # fmt: skip
    for _, name, label, group, _ in everything(data):
        truth = dict(zip(CELEBA, celeba_attributes(number_of(name))))
        told = {a: a if true else f"not {a}" for a, true in truth.items()}
        assert label == told["Smiling"] and group == f"{told['Young']}, {told['Male']}"
    four = D.load("celeba", celeba, 16, target="Male+Smiling", sensitive="Young")
    assert len(four.classes) == 4


def test_celeba_partial_copies_are_counted(celeba):
    for n in (3, 60, 90):
        (celeba / "img_align_celeba" / f"{n:06}.jpg").unlink()
    table = celeba / "list_attr_celeba.txt"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(["88", *lines[1:80], *lines[82:]]) + "\n")  # 79 and 80 have no row
    (celeba / "identity_CelebA.txt").unlink()
    data = D.load("celeba", celeba, 16)
    gone = {3, 60, 79, 80, 90}
    numbers = {number_of(name) for split in data.splits.values() for name in split.ids}
    assert numbers == set(range(1, 91)) - gone
    assert data.notes["left out: rows without a picture"] == 3
    assert data.notes["left out: pictures without a row"] == 2
    assert "rows without a picture: 3" in data.describe()
    assert data["val"].subjects.tolist() == data["val"].ids


def test_celeba_as_its_owner_packs_it_and_as_others_unpack_it(celeba):
    usual = D.load("celeba", celeba, 16).hash()
    for folder, names in {
        "Anno": ["list_attr_celeba.txt", "identity_CelebA.txt"],
        "Eval": ["list_eval_partition.txt"],
        "Img": ["img_align_celeba"],
    }.items():
        (celeba / folder).mkdir()
        for name in names:
            (celeba / name).rename(celeba / folder / name)
    assert D.load("celeba", celeba, 16).hash() == usual
    inner = celeba / "Img" / "img_align_celeba"
    inner.rename(celeba / "x")
    inner.mkdir()
    (celeba / "x").rename(inner / "img_align_celeba")
    assert D.load("celeba", celeba, 16).hash() == usual


# ------------------------------------------------------------------------------------------ WIDER


def test_wider_classes_are_those_of_the_slides():
    table = {e: c for c, events in enumerate(readers.WIDER_CLASSES.values()) for e in events}
    want = zip(PARITY["wider/event_id"].tolist(), PARITY["wider/cluster_id"].tolist())
    assert table == dict(want) and len(readers.WIDER_CLASSES) == 16


def test_wider_images(wider):
    data = D.load("wider", wider, 20)
    rows = everything(data)
    assert len(data.classes) == 16 and data.group_names == ["female", "male"]
    people = {n: wider_people(n) for n in range(180)}
    known = {n: [g for g in people[n] if g] for n in people}
    assert {number_of(name) for _, name, *_ in rows} == {n for n in people if known[n]}
    for part, name, label, group, _ in rows:
        n = number_of(name)
        assert part == name.split("/")[0] == PARTS[n // 60]
        event = int(name.split("/")[1].split("--")[0])
        assert event in readers.WIDER_CLASSES[label]
        assert group == ("male" if known[n].count(1) >= known[n].count(-1) else "female")
    count = lambda test: sum(map(test, people))
    assert data.notes == {
        "images": 180,
        "people": count(lambda n: len(people[n])),
        "people of unknown gender, not counted": count(lambda n: people[n].count(0)),
        "left out: images without anyone of known gender": count(lambda n: not known[n]),
        "images with as many men as women": count(lambda n: bool(known[n]) and sum(known[n]) == 0),
        "left out: unreadable": [],
    }
    assert min(n for what, n in data.notes.items() if "unreadable" not in what) > 0


def test_wider_people_are_cut_out(wider):
    data = D.load("wider", wider, 20, target="event-person")
    rows = everything(data)
    want = [(n, k) for n in range(180) for k, _ in enumerate([g for g in wider_people(n) if g])]
    assert [(number_of(name), int(name.split()[-1])) for _, name, *_ in rows] == want
    for _, name, _, group, _ in rows:
        n, k = number_of(name), int(name.split()[-1])
        assert group == {1: "male", -1: "female"}[[g for g in wider_people(n) if g][k]]
    split = data["train"]
    assert split.subjects.tolist() == [name.split(" person")[0] for name in split.ids]
    ## The person fills the middle of the square, from top to bottom.
    for name, image in zip(split.ids, split.images):
        n, k = number_of(name), int(name.split()[-1])
        place = [j for j, g in enumerate(wider_people(n)) if g][k]
        shown = image[:, 2:18, 9:11].float().mean(dim=(1, 2))
        np.testing.assert_allclose(shown, colour(10 * n + place), atol=30)


# ------------------------------------------------------------------------------------- real files


if "FAIRKD_CIFAR10" in os.environ:  # a folder with the batches, or with class folders

    def test_cifar10s_published_figures():
        data = D.load("cifar10s", os.environ["FAIRKD_CIFAR10"])
        assert {part: len(data[part]) for part in PARTS} == {
            "train": 45_000, "val": 5_000, "test": 20_000
        }  # fmt: skip
        assert data.notes["of them in grey"] == 25_000
        for part, n in (("train", 22_500), ("val", 2_500), ("test", 10_000)):
            split = data[part]
            assert split.groups.sum() == n
            some = split.subset(split.groups == 1).images[:500]
            assert (some == some[:, :1]).all()  # grey
        cells = np.bincount(2 * data["train"].labels + data["train"].groups)
        assert cells.tolist() == [225, 4275, 4275, 225] * 5


if "FAIRKD_CELEBA" in os.environ:

    def test_celeba_published_figures():
        root = Path(os.environ["FAIRKD_CELEBA"])
        table = readers.read_celeba(root, "Attractive", "Male", None, False)
        counts = [int((table.split == part).sum()) for part in PARTS]
        if len(table.ids) == 202_599:  # the whole data set
            assert counts == [162_770, 19_867, 19_962]
        ## The official split goes by number.
        ends = np.searchsorted([162_770, 182_637], [int(i[:6]) for i in table.ids])
        assert [PARTS[k] for k in ends] == table.split.tolist()
        ## Men are called attractive half as often as women, in any sample of this data set.
        rates = [table.labels[table.groups == g].mean() for g in (0, 1)]
        assert 0.6 < rates[0] < 0.75 and 0.2 < rates[1] < 0.35
        parts = [set(table.subjects[table.split == part]) for part in PARTS]
        assert not parts[0] & parts[2]


if "FAIRKD_WIDER" in os.environ:

    def test_wider_published_figures():
        table = readers.read_wider(Path(os.environ["FAIRKD_WIDER"]), "event", "gender", None, False)
        assert table.notes["images"] == 13_789 and table.notes["people"] == 57_524
