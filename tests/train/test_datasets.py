"""Every data set is read from a small folder that lies as its authors publish it.

The drawn scan is 9×10×11 voxels of 0.8×0.7×2.5 mm: 40 HU with air around a lesion of 2×3×2 voxels, which lies at
(2-3, 4-6, 5-6) whatever the mask's file does with its axes.
"""

import re
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from covidseg_runtime.errors import SettingsError, VolumeError
from covidseg_train.datasets import (
    collected_lesions,
    covid_19_ct_seg,
    four_d_lung,
    lidc_idri,
    lidc_nodule_crops,
    mosmed,
    msd_lung_tumour,
    nsclc_pleural_effusion,
    nsclc_radiomics_gtv,
    structseg_gtv,
)
from covidseg_train.datasets.catalog import DATASETS, get_dataset
from covidseg_train.datasets.dataset import find_case, find_named_cases

SHAPE = (9, 10, 11)
LPS = np.array([[-0.8, 0, 0, 90.0], [0, -0.7, 0, 80.0], [0, 0, 2.5, -300.0], [0, 0, 0, 1]])
LESION = np.zeros(SHAPE, np.uint8)
LESION[2:4, 4:7, 5:7] = 1


def hounsfield():
    voxels = np.full(SHAPE, 40, np.int16)
    voxels[1:8, 2:9, 3:9] = -850
    voxels[LESION > 0] = -100
    return voxels


def write(path: Path, voxels, orientation="LPS", *, shift_mm=0.0):
    """Write voxels, given in LPS, with the file's axes in another order or direction."""
    affine = LPS.copy()
    affine[2, 3] += shift_mm
    image = nibabel.Nifti1Image(voxels, affine)
    image = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(orientation)))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def write_pair(ct: Path, mask: Path, *, orientation="LPS", foreground=1):
    write(ct, hounsfield())
    write(mask, LESION * np.uint8(foreground), orientation)


def names_and_patients(dataset, root):
    return [(case.name, case.patient) for case in dataset.find_cases(root)]


def assert_reads_as_drawn(dataset, root, name):
    volumes = dataset.read(find_case(dataset, root, name))
    assert volumes.is_true_hu
    assert np.array_equal(volumes.ct.voxels, hounsfield())
    assert_lesion_as_drawn(volumes)


def assert_lesion_as_drawn(volumes):
    assert volumes.lesion.voxels.dtype == np.uint8
    assert np.array_equal(volumes.lesion.voxels, LESION)
    assert np.array_equal(volumes.lesion.affine, volumes.ct.affine)
    assert volumes.ct.spacing_mm == pytest.approx((0.8, 0.7, 2.5), abs=1e-6)


# COVID-19-CT-Seg: four flat archives with files of the same names, half of the scans windowed.


def grey_levels():
    """The drawn scan as published for Radiopaedia: [-1250, 250] HU to 0-255, with values of which the HU are whole."""
    levels = np.full(SHAPE, 255, np.uint8)
    levels[1:8, 2:9, 3:9] = 51  # 51 / 255 * 1500 - 1250 = -950
    levels[LESION > 0] = 204  # -50
    levels[0, 0] = np.arange(11) * 17  # more grey levels than a label map has; 0, 100, 200, ... HU above -1250
    return levels


def publish_covid(root: Path, work: Path) -> None:
    """Fetch as ``covidseg data fetch`` does: each archive is unpacked where its download says."""
    with_lungs = np.where(LESION > 0, 3, np.where(hounsfield() < -500, 2, 0)).astype(np.uint8)
    contents = {
        "COVID-19-CT-Seg_20cases.zip": (hounsfield(), grey_levels()),
        "Lung_and_Infection_Mask.zip": (with_lungs, with_lungs),
        "Lung_Mask.zip": (np.minimum(with_lungs, 2), np.minimum(with_lungs, 2)),
        "Infection_Mask.zip": (LESION, LESION),
    }
    assert {download.file_name for download in covid_19_ct_seg.DATASET.downloads} == set(contents)
    for download in covid_19_ct_seg.DATASET.downloads:
        archive = work / download.file_name
        with zipfile.ZipFile(archive, "w") as zipped:
            for name, voxels in zip(("coronacases_001", "radiopaedia_10_85902_1"), contents[archive.name], strict=True):
                write(work / "file.nii.gz", voxels)
                zipped.write(work / "file.nii.gz", f"{name}.nii.gz")
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(root / download.unpack_into)


@pytest.fixture
def covid_root(tmp_path):
    root, work = tmp_path / "covid", tmp_path / "work"
    work.mkdir()
    publish_covid(root, work)
    return root


def test_covid_archives_of_identical_names_do_not_overwrite_each_other(covid_root):
    assert names_and_patients(covid_19_ct_seg.DATASET, covid_root) == [
        ("coronacases_001", "coronacases_001"),
        ("radiopaedia_10_85902_1", "radiopaedia_10_85902"),
    ]
    assert_reads_as_drawn(covid_19_ct_seg.DATASET, covid_root, "coronacases_001")


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_a_windowed_covid_scan_is_mapped_back_and_says_so(covid_root, dtype):
    write(covid_root / "COVID-19-CT-Seg_20cases/radiopaedia_10_85902_1.nii.gz", grey_levels().astype(dtype))
    case = find_case(covid_19_ct_seg.DATASET, covid_root, "radiopaedia_10_85902_1")
    volumes = covid_19_ct_seg.DATASET.read(case)
    assert not volumes.is_true_hu
    expected = hounsfield().astype(np.float32)
    expected[expected == 40] = 250  # all above the window
    expected[expected == -850] = -950
    expected[expected == -100] = -50
    expected[0, 0] = np.arange(11) * 100 - 1250
    assert np.allclose(volumes.ct.voxels, expected, atol=1e-3)
    assert_lesion_as_drawn(volumes)


def test_the_infection_is_label_3_where_only_the_mask_with_lungs_is_there(covid_root):
    (covid_root / "Infection_Mask" / "coronacases_001.nii.gz").unlink()
    assert_reads_as_drawn(covid_19_ct_seg.DATASET, covid_root, "coronacases_001")


def test_a_mask_unpacked_over_a_covid_scan_is_not_taken_for_a_window(covid_root):
    write(covid_root / "COVID-19-CT-Seg_20cases/coronacases_001.nii.gz", LESION * np.uint8(3))
    case = find_case(covid_19_ct_seg.DATASET, covid_root, "coronacases_001")
    with pytest.raises(VolumeError, match="looks like a label map"):
        covid_19_ct_seg.DATASET.read(case)


def test_a_damaged_covid_scan_is_refused(covid_root):
    path = covid_root / "COVID-19-CT-Seg_20cases/coronacases_001.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VolumeError, match="not a single-file NIfTI image"):
        covid_19_ct_seg.DATASET.read(find_case(covid_19_ct_seg.DATASET, covid_root, "coronacases_001"))


# The others.


def test_msd_is_read_without_the_files_of_macos_and_without_unlabelled_scans(tmp_path):
    published = tmp_path / "published" / "Task06_Lung"
    write_pair(published / "imagesTr/lung_001.nii.gz", published / "labelsTr/lung_001.nii.gz")
    write(published / "imagesTs/lung_002.nii.gz", hounsfield())
    for hidden in ("imagesTr/._lung_001.nii.gz", "labelsTr/._lung_001.nii.gz"):
        (published / hidden).write_bytes(b"\0\5\x16\7")
    (download,) = msd_lung_tumour.DATASET.downloads
    archive = tmp_path / download.file_name
    with tarfile.open(archive, "w") as tar:
        tar.add(published, "Task06_Lung")
    root = tmp_path / "msd"
    with tarfile.open(archive) as tar:
        tar.extractall(root / download.unpack_into, filter="data")
    assert names_and_patients(msd_lung_tumour.DATASET, root) == [("lung_001", "lung_001")]
    assert_reads_as_drawn(msd_lung_tumour.DATASET, root, "lung_001")
    assert_reads_as_drawn(msd_lung_tumour.DATASET, root / "Task06_Lung", "lung_001")


def test_structseg_is_one_folder_a_case_under_the_benchmarks_names(tmp_path):
    write_pair(tmp_path / "Lung_GTV/2/data.nii.gz", tmp_path / "Lung_GTV/2/label.nii.gz")
    write_pair(tmp_path / "Lung_GTV/10/data.nii", tmp_path / "Lung_GTV/10/label.nii")
    write(tmp_path / "Lung_GTV/3/data.nii.gz", hounsfield())
    assert names_and_patients(structseg_gtv.DATASET, tmp_path) == [("train_10", "train_10"), ("train_2", "train_2")]
    assert_reads_as_drawn(structseg_gtv.DATASET, tmp_path, "train_2")
    assert_reads_as_drawn(structseg_gtv.DATASET, tmp_path / "Lung_GTV", "train_10")


@pytest.mark.parametrize("orientation", ["LAS", "RAS", "LPI", "PLS"])
def test_an_effusion_mask_is_turned_by_its_affine(tmp_path, orientation):
    mask = "Effusions/LUNG1-001/LUNG1-001_effusion_{}_reviewer.nii.gz"
    write_pair(
        tmp_path / "NSCLC-Radiomics/LUNG1-001/image.nii.gz", tmp_path / mask.format("first"), orientation=orientation
    )
    write(tmp_path / mask.format("second"), 1 - LESION, orientation)
    write(tmp_path / mask.replace("001", "008").format("first"), LESION)  # a mask without its CT
    assert names_and_patients(nsclc_pleural_effusion.DATASET, tmp_path) == [("LUNG1-001", "LUNG1-001")]
    assert_reads_as_drawn(nsclc_pleural_effusion.DATASET, tmp_path, "LUNG1-001")


def test_mosmed_is_found_by_its_masks(tmp_path):
    root = tmp_path / "COVID19_1110"
    write_pair(root / "studies/CT-1/study_0255.nii.gz", root / "masks/study_0255_mask.nii.gz")
    write_pair(root / "studies/CT-1/study_0256.nii", root / "masks/study_0256_mask.nii")
    write(root / "studies/CT-0/study_0001.nii.gz", hounsfield())
    expected = [("study_0255", "study_0255"), ("study_0256", "study_0256")]
    assert names_and_patients(mosmed.DATASET, tmp_path) == names_and_patients(mosmed.DATASET, root) == expected
    assert_reads_as_drawn(mosmed.DATASET, tmp_path, "study_0255")
    assert_reads_as_drawn(mosmed.DATASET, root, "study_0256")


def test_converted_dicom_is_one_folder_a_scan(tmp_path):
    for dataset, folder, mask, patient in (
        (nsclc_radiomics_gtv.DATASET, "LUNG1-002", "mask_GTV-1.nii.gz", "LUNG1-002"),
        (four_d_lung.DATASET, "113_HM10395_phase40", "mask_Tumor_c40.nii.gz", "113_HM10395"),
        (four_d_lung.DATASET, "115_HM10395_phase00", "mask_Tumor_-c00.nii.gz", "115_HM10395"),
        (lidc_idri.DATASET, "LIDC-IDRI-0001", "mask_nodule50.nii.gz", "LIDC-IDRI-0001"),
    ):
        root = tmp_path / folder
        write_pair(root / folder / "image.nii.gz", root / folder / mask, foreground=255)
        write(root / folder / "mask_Lung-Left.nii.gz", LESION)
        write(root / "without_mask" / "image.nii.gz", hounsfield())
        assert names_and_patients(dataset, root) == [(folder, patient)]
        assert_reads_as_drawn(dataset, root, folder)


def test_two_masks_of_one_structure_are_refused(tmp_path):
    for name in ("image", "mask_Tumor_c00", "mask_Tumor_c10"):
        write(tmp_path / "113_HM10395" / f"{name}.nii.gz", LESION)
    with pytest.raises(VolumeError, match=r"mask_Tumor_c00\.nii\.gz, mask_Tumor_c10\.nii\.gz; one mask"):
        four_d_lung.DATASET.find_cases(tmp_path)


def test_a_chest_without_infection_counts_its_tumours_and_nodules_as_lung(tmp_path):
    for name, mark in (("A", "gtv"), ("B", "nodule50"), ("C", "effusion")):
        write_pair(tmp_path / f"ct/{name}_ct.nii.gz", tmp_path / f"lesions/{name}_{mark}.nii.gz")
    assert names_and_patients(collected_lesions.CHEST, tmp_path) == [("A", "A"), ("B", "B")]
    assert collected_lesions.CHEST.marks_lung


def test_a_patient_has_one_name_in_every_set():
    assert four_d_lung.patient_of("113_HM10395_visit2_phase90") == "113_HM10395"
    assert lidc_nodule_crops.patient_of("LIDC-IDRI-0003_nodule_2.nii.gz") == "LIDC-IDRI-0003"


def test_a_crop_of_nothing_but_air_is_read(tmp_path):
    crop = np.full(SHAPE, -850, np.int16)
    crop[LESION > 0] = -650  # ground glass
    write(tmp_path / "image/LIDC-IDRI-0007_1.nii.gz", crop)
    write(tmp_path / "mask/LIDC-IDRI-0007_1.nii.gz", LESION)
    assert names_and_patients(lidc_nodule_crops.DATASET, tmp_path) == [("LIDC-IDRI-0007_1", "LIDC-IDRI-0007")]
    volumes = lidc_nodule_crops.DATASET.read(find_case(lidc_nodule_crops.DATASET, tmp_path, "LIDC-IDRI-0007_1"))
    assert np.array_equal(volumes.ct.voxels, crop)
    assert_lesion_as_drawn(volumes)


# Of all sets.


def test_a_mask_elsewhere_in_the_patient_is_refused(tmp_path):
    write_pair(tmp_path / "imagesTr/lung_001.nii.gz", tmp_path / "labelsTr/lung_001.nii.gz")
    write(tmp_path / "labelsTr/lung_001.nii.gz", LESION, shift_mm=2.5)
    with pytest.raises(VolumeError, match=r"lie up to 2\.5 mm apart"):
        msd_lung_tumour.DATASET.read(find_case(msd_lung_tumour.DATASET, tmp_path, "lung_001"))


def test_a_mask_of_another_shape_is_refused(tmp_path):
    write_pair(tmp_path / "imagesTr/lung_001.nii.gz", tmp_path / "labelsTr/lung_001.nii.gz")
    write(tmp_path / "labelsTr/lung_001.nii.gz", LESION[:, :, :-1])
    with pytest.raises(VolumeError, match="do not share one grid"):
        msd_lung_tumour.DATASET.read(find_case(msd_lung_tumour.DATASET, tmp_path, "lung_001"))


def test_only_the_windowed_scans_of_one_set_may_hold_no_hounsfield_units(tmp_path):
    write_pair(tmp_path / "imagesTr/lung_001.nii.gz", tmp_path / "labelsTr/lung_001.nii.gz")
    write(tmp_path / "imagesTr/lung_001.nii.gz", grey_levels())
    with pytest.raises(VolumeError, match="holds values from 0 to 255"):
        msd_lung_tumour.DATASET.read(find_case(msd_lung_tumour.DATASET, tmp_path, "lung_001"))


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_an_empty_or_missing_folder_holds_no_case(dataset, tmp_path):
    assert dataset.find_cases(tmp_path) == dataset.find_cases(tmp_path / "missing") == ()
    with pytest.raises(VolumeError, match=f"holds no case of {dataset.name}"):
        find_named_cases(dataset, tmp_path, ())


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_a_data_set_says_what_it_is_and_how_to_get_it(dataset):
    assert all((dataset.title, dataset.lesion, dataset.licence, dataset.citation, dataset.limits))
    assert dataset.homepage.startswith("http")
    assert dataset.downloads or dataset.how_to_get
    for download in dataset.downloads:
        assert download.url.startswith("https://")
        assert re.fullmatch(r"[0-9a-f]{64}", download.sha256)
        assert download.file_name == Path(download.file_name).name


def test_archives_of_one_set_have_a_folder_each():
    folders = [download.unpack_into for download in covid_19_ct_seg.DATASET.downloads]
    assert sorted(set(folders)) == sorted(folders)


def test_an_unknown_data_set_is_refused_by_name():
    with pytest.raises(SettingsError, match="There is no data set 'msd'; known are covid-19-ct-seg, "):
        get_dataset("msd")
