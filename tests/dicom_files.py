"""The phantom written as DICOM files: single images, a multi-frame object, compressed."""

import warnings
from copy import deepcopy

import numpy as np
from dicom_phantom import ct_header, phantom_volume
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SLICES = phantom_volume().shape[2]


def image(k, *, intercept=-1024):
    """Slice k of the phantom as a CT image."""
    dataset = ct_header(k)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept
    stored = phantom_volume().voxels[:, :, k].T.astype(np.int32) - intercept
    dataset.PixelData = stored.astype("<u2").tobytes()
    return dataset


def save(dataset, path, syntax=ExplicitVRLittleEndian):
    dataset = deepcopy(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, little_endian=little, implicit_vr=implicit, enforce_file_format=True)
    return path


def write(folder, images, syntax=ExplicitVRLittleEndian):
    folder.mkdir(parents=True, exist_ok=True)
    for index, one in enumerate(images):
        save(one, folder / f"IM{index:04d}", syntax)
    return folder


def series(order=range(SLICES)):
    return [image(k) for k in order]


def enhanced(order):
    """One Enhanced CT whose frame f is slice order[f]."""
    dataset, shared = deepcopy(image(0)), Dataset()
    dataset.SOPClassUID = EnhancedCTImageStorage
    measures, orientation, rescale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1024
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    dataset.SharedFunctionalGroupsSequence, per_frame = [shared], []
    for k in order:
        item, position = Dataset(), Dataset()
        position.ImagePositionPatient = image(k).ImagePositionPatient
        item.PlanePositionSequence = [position]
        per_frame.append(item)
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = per_frame, len(per_frame)
    dataset.PixelData = b"".join(image(k).PixelData for k in order)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        del dataset[keyword]
    return dataset


def compress(folder, name):
    import gdcm

    for path in folder.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
