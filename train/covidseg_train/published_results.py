"""Published rows of the COVID-19-CT-Seg benchmark: infection, mean ± SD over test cases, as shares of 1.

Source: Ma et al., Medical Physics 48(3):1197-1210, 2021, doi 10.1002/mp.14676; numbers from README.md (Tasks 1 and 2),
Task1/README.md (80 % training, folds) and Task3/README.md of github.com/JunMa11/COVID-19-CT-Seg-Benchmark. All by
nnU-Net's 3D U-Net, patch 56×160×192, widths 32 to 320.
"""

from dataclasses import dataclass

CITATION = (
    "Ma et al., Toward data-efficient learning: a benchmark for COVID-19 CT lung and infection segmentation, "
    "Medical Physics 48(3):1197-1210, 2021, doi 10.1002/mp.14676; "
    "https://github.com/JunMa11/COVID-19-CT-Seg-Benchmark"
)


@dataclass(frozen=True)
class PublishedRow:
    """One published row.

    Attributes:
        setting: Task of the benchmark.
        trained_on: What the network saw.
        shots: COVID-19 scans in training.
        dsc: Mean DSC.
        dsc_sd: Its standard deviation over test results.
        nsd: Mean NSD at 3 mm.
        nsd_sd: Its standard deviation.
    """

    setting: str
    trained_on: str
    shots: int
    dsc: float
    dsc_sd: float
    nsd: float
    nsd_sd: float


PUBLISHED_ROWS = (
    PublishedRow("Task 1, infection alone", "COVID-19", 4, 0.673, 0.223, 0.700, 0.244),
    PublishedRow("Task 1, lungs and infection", "COVID-19", 4, 0.610, 0.262, 0.618, 0.274),
    PublishedRow("Task 2, no COVID-19", "lung tumour (MSD)", 0, 0.252, 0.274, 0.260, 0.285),
    PublishedRow("Task 2, no COVID-19", "lung tumour (StructSeg)", 0, 0.060, 0.127, 0.055, 0.107),
    PublishedRow("Task 2, no COVID-19", "pleural effusion (NSCLC)", 0, 0.004, 0.009, 0.037, 0.048),
    PublishedRow("Task 3, joint training", "lung tumour (MSD) and COVID-19", 4, 0.623, 0.257, 0.613, 0.276),
    PublishedRow("Task 3, joint training", "lung tumour (StructSeg) and COVID-19", 4, 0.642, 0.245, 0.633, 0.257),
    PublishedRow("Task 3, joint training", "pleural effusion (NSCLC) and COVID-19", 4, 0.602, 0.254, 0.585, 0.267),
    PublishedRow("80 % training", "COVID-19", 16, 0.777, 0.187, 0.808, 0.199),
)
