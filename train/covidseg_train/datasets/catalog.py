"""Every data set by its name."""

from types import MappingProxyType

from covidseg_runtime.errors import SettingsError
from covidseg_train.datasets import collected_lesions, covid_19_ct_seg_rebuilt, lidc_nodule_crops
from covidseg_train.datasets.dataset import Dataset

_ALL = (
    covid_19_ct_seg_rebuilt.DATASET,
    collected_lesions.EFFUSION,
    collected_lesions.TUMOUR,
    collected_lesions.NODULE,
    lidc_nodule_crops.DATASET,
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
