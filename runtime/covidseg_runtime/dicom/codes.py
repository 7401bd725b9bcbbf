"""Every coded concept that the objects use, with its scheme: one place to review and to change.

Schemes: SCT is SNOMED CT, DCM the DICOM controlled terminology, UCUM the units, UMLS the concept of one container.
99COVIDSEG is private: it holds what no public scheme has a code for. Infection is coded as opacity of the lung, not
as COVID-19: the network sees density, and no density is specific to a cause.
"""

from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99COVIDSEG"

# What a segment or a group of measurements is about.
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
OPACITY = Code("112001", "DCM", "Opacity")
LUNG = Code("39607008", "SCT", "Lung")
LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
RIGHT_AND_LEFT = Code("51440002", "SCT", "Right and left")

# What is measured.
VOLUME = Code("118565006", "SCT", "Volume")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions")
VOXEL_COUNT = Code("VOXELS", PRIVATE_SCHEME, "Number of segmented voxels")
PERCENTAGE_OF_INFECTION = Code("PI", PRIVATE_SCHEME, "Percentage of infection")
GROUND_GLASS_VOLUME = Code("GGO", PRIVATE_SCHEME, "Volume of infection below -300 HU")
CONSOLIDATION_VOLUME = Code("CONS", PRIVATE_SCHEME, "Volume of infection of -300 HU and above")
INFECTION_VOLUME = Code("INFVOL", PRIVATE_SCHEME, "Volume of infection within the lung")
VOLUME_RANGE_LOW = Code("RANGELOW", PRIVATE_SCHEME, "Lower end of the range of infection volume")
VOLUME_RANGE_HIGH = Code("RANGEHIGH", PRIVATE_SCHEME, "Upper end of the range of infection volume")

# How it is measured, and in what unit.
MEAN = Code("373098007", "SCT", "Mean")
SUM_OF_VOXELS = Code("126030", "DCM", "Sum of segmented voxel method for volume")
MILLILITRE = Code("mL", "UCUM", "milliliter")
PERCENT = Code("%", "UCUM", "percent")
HOUNSFIELD_UNIT = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
NO_UNIT = Code("1", "UCUM", "no units")

# The frame of a report, and who speaks.
MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
CT_OF_CHEST = Code("169069000", "SCT", "CT of chest")
DEVICE = Code("121007", "DCM", "Device")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
COMMENT = Code("121106", "DCM", "Comment")
NOTICE = Code("NOTICE", PRIVATE_SCHEME, "Notice")
LIMITS = Code("LIMITS", PRIVATE_SCHEME, "Limits")
WARNING = Code("WARNING", PRIVATE_SCHEME, "Warning")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
