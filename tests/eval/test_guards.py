"""Warnings: each appears where it should, says its numbers, and does not where all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqbench.errors import ArtifactError, SpecError
from vqbench.eval.feature_set import Gaussian
from vqbench.eval.guards import ENOUGH, Guards
from vqbench.eval.protocols import Protocol, Splits, load_protocol
from vqbench.eval.saved_reference import Kept
from vqbench.eval.seen import Seen
from vqbench.eval.sources import Source, open_source
from vqbench.eval.statistics_file import Reference, open_statistics

SHIPPED = load_protocol("adm")
ADM = SHIPPED.model_copy(update={"sets": SHIPPED.sets.model_copy(update={"count": ENOUGH})})  # 50,000 take long to make
LLAMAGEN = load_protocol("llamagen-code")  # IS over chunks in the order of the samples
IN_ORDER = LLAMAGEN.model_copy(update={"inception_score": Splits(split_size=2, shuffle=False, seed=0)})
UNCROPPED = load_protocol("clean-fid")
GAUSSIAN = Gaussian(np.zeros(2), np.eye(2), 0)


def some(count: int = 12, seed: int = 0, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def many(count: int = ENOUGH, seed: int = 0) -> np.ndarray:
    return some(count, seed, 2)  # 2^96 images of that size: none twice


def opened(what: Any, protocol: Protocol = ADM, **options: Any) -> Source:
    return open_source(what, protocol.images, **options)


def watch(
    source: Source, other: Source | Reference | None, names: tuple[str, ...], protocol: Protocol = ADM
) -> list[str]:
    """The warnings after a pass over both sides."""
    for side in (source, other):
        if isinstance(side, Source):
            for _ in side.batches(5000):
                pass
    return Guards(protocol, list(names)).warnings(source, other)


def saved(count: int, **meta: Any) -> Reference:
    return Reference("ref.npz", count, {"pooled": GAUSSIAN}, {}, meta)


def write(folder: Path, images: np.ndarray, suffix: str = ".png", start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, start):
        Image.fromarray(image).save(folder / f"{i:04d}{suffix}")
    return folder


def test_enough_good_images_give_no_warning() -> None:
    assert watch(opened(many()), opened(many(seed=1)), ("fid", "sfid", "is", "precision")) == []


@pytest.mark.parametrize(("ours", "theirs"), [(12, ENOUGH), (ENOUGH, 12), (12, 13)])
def test_few_images_are_counted_on_both_sides(ours: int, theirs: int) -> None:
    (found,) = watch(opened(many(ours)), opened(many(theirs, 1)), ("fid", "rfid", "precision"))
    assert found.startswith(
        f"fid and rfid of {ours:,} generated images against {theirs:,} reference images: below 10,000 "
    )


def test_only_fid_is_biased_by_few_images() -> None:
    assert watch(opened(some()), opened(some(seed=1)), ("is", "kid", "fid_infinity", "psnr", "precision")) == []


def test_saved_statistics_count_by_what_they_say() -> None:
    assert watch(opened(many()), saved(50_000, protocol="adm"), ("fid",)) == []
    (found,) = watch(opened(many()), saved(48, protocol="adm"), ("fid",))
    assert "against 48 reference images" in found
    few, unsigned = watch(opened(some()), saved(0), ("fid",))
    assert "a reference of unknown size" in few and unsigned.startswith("ref.npz does not say under which protocol")


def test_copies_are_counted_pixel_for_pixel() -> None:
    images = some(20)
    images[[7, 13, 19]] = images[2]
    images[11] = images[3]
    images[12] = images[4]
    images[12, 0, 0, 0] ^= 1
    (found,) = watch(opened(images), None, ("is",))
    assert found.startswith("4 of 20 generated images are copies") and "seed" in found
    (found,) = watch(opened(some(seed=1)), opened(images), ("is",))
    assert found.startswith("4 of 20 reference images are copies") and "seed" not in found


@settings(max_examples=30, deadline=None)
@given(kinds=st.lists(st.integers(0, 5), min_size=1, max_size=30), batch=st.integers(1, 31), seed=st.integers(0, 9))
def test_copies_do_not_hang_on_order_or_batches(kinds: list[int], batch: int, seed: int) -> None:
    source = opened(some(6)[np.random.default_rng(seed).permutation(np.array(kinds))])
    assert source.copies() == 0  # nothing was read
    for _ in source.batches(batch):
        pass
    assert source.copies() == len(kinds) - len(set(kinds))


def seen(images: np.ndarray, part: np.ndarray, kind: str = "array", labels: np.ndarray | None = None) -> Seen:
    """What a process notes whose share of `images` is `part`."""
    found = Seen(len(images), images.shape[1:3], labels)
    found.add(part, images[part], kind)
    return found


@settings(max_examples=30, deadline=None)
@given(kinds=st.lists(st.integers(0, 5), min_size=3, max_size=30), shards=st.integers(1, 4), seed=st.integers(0, 9))
def test_shards_are_warned_of_as_the_set_is(kinds: list[int], shards: int, seed: int) -> None:
    images, order = some(6)[np.array(kinds)], np.random.default_rng(seed).permutation(len(kinds))
    first, *others = (seen(images, part) for part in np.array_split(order, shards))
    for other in others:
        first.merge(other)
    source = opened(images)
    expected = watch(source, opened(some(seed=1)), ("fid", "is"))
    assert Guards(ADM, ("fid", "is")).warnings(first, opened(some(seed=1))) == expected
    assert first.copies() == len(kinds) - len(set(kinds)) and first.digest() == source.digest()
    assert (first.formats, first.sizes) == (source.formats, source.sizes)


def test_shards_of_other_sets_do_not_merge() -> None:
    images = some()
    with pytest.raises(SpecError, match="count 12 and 11"):
        seen(images, np.arange(5)).merge(seen(images[1:], np.arange(5, 11)))
    with pytest.raises(ArtifactError, match="counted twice"):
        seen(images, np.arange(5)).merge(seen(images, np.arange(4, 12)))


def folders(root: Path, counts: dict[str, int]) -> Path:
    for place, (name, count) in enumerate(counts.items()):
        write(root / name, some(count, place))
    return root


def test_sorted_classes_matter_where_the_score_is_taken_in_order(tmp_path: Path) -> None:
    source = opened(folders(tmp_path, {"cat": 6, "dog": 6}))
    assert watch(source, None, ("is",)) == []  # shuffled
    assert watch(source, None, ("precision",), IN_ORDER) == []
    (found,) = watch(source, None, ("is",), IN_ORDER)
    assert "sorted by class (2 classes)" in found and "6 chunks" in found and "shuffle" in found
    assert watch(source, None, ("is",), LLAMAGEN) == []  # chunks of 5,000: twelve images are one


def test_sorted_classes_are_seen_by_the_judge_where_nobody_names_them() -> None:
    source, guards, rng = opened(some(400, size=2)), Guards(IN_ORDER, ["is"]), np.random.default_rng(0)
    true = np.repeat(np.arange(20), 20)
    seen = np.where(rng.random(400) < 0.7, true, rng.integers(0, 20, 400))  # a judge that errs on three in ten
    for _ in source.batches(100):
        pass
    (found,) = guards.warnings(source, None, seen)
    assert "seem to be sorted by class, as the judge sees them (20 classes)" in found
    for fine in (rng.permutation(seen), np.arange(400) % 20, np.zeros(400, np.int64), rng.integers(0, 2, 400)):
        assert guards.warnings(source, None, fine) == []
    assert Guards(ADM, ["is"]).warnings(source, None, seen) == []  # shuffled


def test_a_small_last_part_of_the_inception_score_is_said() -> None:
    (found,) = watch(opened(many(5001)), None, ("is",))
    assert found == "is: the last part of 1 images pulls the score towards 1; give a multiple of 5,000 images"
    assert watch(opened(many(4999)), None, ("is",)) == watch(opened(many(5001)), None, ("kid",)) == []
    assert (
        watch(opened(many(5001)), None, ("is",), load_protocol("torch-fidelity")) == []
    )  # ten parts, as even as can be


def test_shuffled_labels_are_no_warning(tmp_path: Path) -> None:
    for labels, expected in ((np.arange(12) % 3, 0), (np.sort(np.arange(12) % 3), 1), (np.zeros(12, int), 0)):
        np.savez(tmp_path / "a.npz", some(), labels)
        assert len(watch(opened(tmp_path / "a.npz"), None, ("is",), IN_ORDER)) == expected


def test_uneven_classes_are_counted(tmp_path: Path) -> None:
    assert watch(opened(folders(tmp_path / "even", {"cat": 6, "dog": 3})), None, ("is",)) == []
    source = opened(folders(tmp_path / "uneven", {"cat": 7, "dog": 3, "elk": 4}))
    (found,) = watch(source, None, ("is",))
    assert found.startswith("generated classes") and "from 3 to 7 images over 3 classes" in found
    (found,) = watch(opened(some()), source, ("is",))
    assert found.startswith("reference classes")
    assert watch(source, None, ("psnr",)) == []
    statistics = saved(20, classes=list(source.class_sizes() or ()))
    assert watch(opened(some()), statistics, ("is",)) == [found]
    assert watch(opened(some()), statistics, ("psnr",)) == []
    assert watch(opened(some()), saved(20, classes=None), ("is",)) == []


def test_jpeg_files_are_counted_on_either_side(tmp_path: Path) -> None:
    lossy, clean = write(tmp_path / "jpg", some(), ".jpg"), write(tmp_path / "png", some(seed=1))
    (found,) = watch(opened(lossy), opened(clean), ("is",))
    assert found.startswith("12 of 12 generated images are JPEG files")
    (found,) = watch(opened(clean), opened(lossy), ("is",))
    assert found.startswith("12 of 12 reference images are JPEG files")
    large = write(tmp_path / "large", some(size=20), ".jpg")
    assert watch(opened(clean), opened(large, crop_to=(6, 6)), ("is",)) == []  # resampled: what the protocols do
    write(large, some(1, 2, 5), ".jpg", start=20)
    (found,) = watch(opened(clean), opened(large, crop_to=(6, 6)), ("is",))
    assert found.startswith("1 reference images are smaller")  # and resampled, too


def test_references_that_were_enlarged_are_counted(tmp_path: Path) -> None:
    folder = write(write(tmp_path, some(3, 1, 4)), some(4, 2, 9), start=3)
    source, reference = opened(some()), opened(folder, crop_to=(6, 6))
    (found,) = watch(source, reference, ("is",))
    assert found.startswith("3 reference images are smaller than those scored and were enlarged")
    assert reference.converted == {"enlarged to 6x6 (adm)": 3, "cropped to 6x6 (adm)": 4}
    assert watch(source, saved(12, converted=dict(reference.converted)), ("is",)) == [found]
    assert watch(source, opened(some(5, 3, 9), crop_to=(6, 6)), ("is",)) == []


def test_originals_that_were_cropped_are_said(tmp_path: Path) -> None:
    def of_pairs(other: Any) -> list[str]:
        source, originals = opened(some()), opened(other, crop_to=(6, 6), enlarge=False)
        for side in (source, originals):
            for _ in side.batches(5):
                pass
        return Guards(ADM, ["psnr"], pairs=True).warnings(source, originals)

    assert of_pairs(some(seed=1)) == []
    (found,) = of_pairs(some(seed=1, size=9))
    assert found.startswith("12 originals were cropped from 9x9 to 6x6 (adm)")
    (found,) = of_pairs(write(write(tmp_path, some(3, 1, 8)), some(9, 2, 9), start=3))
    assert "from 2 sizes, e.g. 8x8, to 6x6 (adm)" in found


def test_a_jpeg_of_several_pictures_is_a_jpeg(tmp_path: Path) -> None:
    first, second, *rest = (Image.fromarray(image) for image in some())
    first.save(tmp_path / "0.jpg", "MPO", save_all=True, append_images=[second])
    for i, image in enumerate(rest):
        image.save(tmp_path / f"1{i}.jpg")
    with Image.open(tmp_path / "0.jpg") as image:
        assert image.format == "MPO"
    source = opened(tmp_path)
    (found,) = watch(source, None, ("is",))
    assert source.formats == {"jpeg": 11} and found.startswith("11 of 11 generated images are JPEG files")


def test_mixed_formats_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path, some())
    write(folder, some(3, 1), ".webp", start=12)
    found = watch(opened(folder), opened(folder), ("is",))
    assert found[0].startswith("generated images are of mixed formats (12 png, 3 webp)") and found[1].startswith(
        "reference "
    )


def test_references_of_another_size_were_not_cropped(tmp_path: Path) -> None:
    source = opened(some(), UNCROPPED)
    (found,) = watch(source, opened(some(seed=1, size=8), UNCROPPED), ("kid",), UNCROPPED)
    assert (
        "reference images are 8x8 where generated ones are 6x6" in found
        and "rule 'none' of protocol 'clean-fid'" in found
    )
    natural = write(tmp_path, some(3, 2, 8))
    write(natural, some(3, 3, 9), start=3)
    write(natural, some(3, 3, 6), start=6)
    (found,) = watch(source, opened(natural, UNCROPPED, any_size=True), ("kid",), UNCROPPED)
    assert "of 2 other sizes, e.g. 8x8" in found
    np.savez(tmp_path / "adm.npz", arr_0=some(3, 2, 8), mu=np.zeros(2), sigma=np.eye(2))
    found = watch(source, open_statistics(tmp_path / "adm.npz", {}), ("kid",), UNCROPPED)
    assert any("reference images are 8x8" in warning for warning in found)
    mixed = {"sizes": [[8, 8, 3], [6, 6, 3]]}
    for meta, expected in (({"size": [8, 8]}, 1), (mixed, 1), ({"crop": [6, 6]}, 0), ({"crop": None}, 0)):
        assert len(watch(source, saved(20_000, **meta), ("kid",), UNCROPPED)) == expected


def test_a_set_against_itself_is_noticed_in_any_container(tmp_path: Path) -> None:
    source = opened(some())
    for other in (opened(write(tmp_path, some())), saved(12, source=source.digest())):
        (found,) = watch(source, other, ("kid",))
        assert "are the reference's own, pixel for pixel" in found and "12" in found
    assert watch(source, saved(12, source="another"), ("kid",)) == []


def test_every_warning_is_one_sentence(tmp_path: Path) -> None:
    folder = folders(tmp_path / "set", {"cat": 7, "dog": 3})
    write(folder / "dog", np.stack([some(1)[0]] * 2), ".jpg", start=20)
    found = watch(opened(folder, IN_ORDER), opened(folder, IN_ORDER), ("fid", "is"), IN_ORDER)
    assert len(found) >= 6 and all("\n" not in w and not w.endswith(".") and len(w) < 300 for w in found)


def test_another_count_than_the_protocols_is_named() -> None:
    source = opened(many(ENOUGH + 1))
    (warning,) = (w for w in watch(source, saved(50_000, source="x"), ("fid",), SHIPPED) if "published" in w)
    assert "10,001 generated" in warning and "are of 50,000" in warning
    free = watch(source, saved(50_000, source="x"), ("fid",), UNCROPPED)
    assert not any("published" in w for w in free)


def test_saved_statistics_say_what_their_images_were(tmp_path: Path) -> None:
    copied = np.concatenate([some(17, 1), some(17, 1)[5:8]])  # of PNGs
    folder = write(write(tmp_path / "mixed", copied[:5], ".jpg"), copied[5:], start=5)
    source = opened(folder)
    for _ in source.batches(50):
        pass
    facts = {"formats": dict(source.formats), "copies": source.copies(), "converted": dict(source.converted)}
    found = watch(opened(some()), saved(20, **facts), ("psnr",))
    assert found == watch(opened(some()), opened(folder), ("psnr",))
    copies, formats, lossy = found
    assert copies.startswith(f"{source.copies()} of 20 reference images are copies")
    assert formats.startswith("reference images are of mixed formats (5 jpeg, 15 png)")
    assert lossy.startswith("5 of 20 reference images are JPEG files")


def test_kid_against_a_part_of_the_reference_is_said() -> None:
    kept = {"pooled": Kept(np.arange(30), np.zeros((30, 2), np.float32))}
    other = Reference("ref.npz", 50, {"pooled": GAUSSIAN}, kept, {"source": "x"})
    (found,) = watch(opened(some()), other, ("kid",))
    assert found == "kid draws from the 30 of 50 reference images whose features ref.npz keeps"
    assert watch(opened(some()), Reference("ref.npz", 30, {"pooled": GAUSSIAN}, kept, {"source": "x"}), ("kid",)) == []
