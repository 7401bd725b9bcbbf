"""Every data set by its name."""

from types import MappingProxyType

from covidseg_runtime.errors import SettingsError
from covidseg_train.datasets import (
    collected_lesions,
    covid_19_ct_seg,
    covid_19_ct_seg_rebuilt,
    four_d_lung,
    lidc_idri,
    lidc_nodule_crops,
    mosmed,
    msd_lung_tumour,
    nsclc_pleural_effusion,
    nsclc_radiomics_gtv,
    simulated_infection,
    structseg_gtv,
)
from covidseg_train.datasets.dataset import Dataset

_ALL = (
    covid_19_ct_seg.DATASET,
    covid_19_ct_seg_rebuilt.DATASET,
    mosmed.DATASET,
    msd_lung_tumour.DATASET,
    structseg_gtv.DATASET,
    nsclc_pleural_effusion.DATASET,
    nsclc_radiomics_gtv.DATASET,
    four_d_lung.DATASET,
    lidc_idri.DATASET,
    collected_lesions.EFFUSION,
    collected_lesions.TUMOUR,
    collected_lesions.NODULE,
    collected_lesions.CHEST,
    lidc_nodule_crops.DATASET,
    simulated_infection.DATASET,
)
DATASETS = MappingProxyType({dataset.name: dataset for dataset in _ALL})


def get_dataset(name: str) -> Dataset:
    """Look a data set up.

    Raises:
        SettingsError: If there is none of this name.
    """
    # Configurations before 0.2 wrote the module's name.
    dataset = DATASETS.get(name.replace("_", "-"))
    if dataset is None:
        raise SettingsError(f"There is no data set {name!r}; known are {', '.join(DATASETS)}.")
    return dataset
