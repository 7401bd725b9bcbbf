"""Orthanc's Python plugin: hand every CT series that has settled to covidseg.

orthanc.json: "PythonScript": "covidseg_plugin.py", "DicomModalities": {"covidseg": ["COVIDSEG", "127.0.0.1", 11112]}
"""

import json

import orthanc  # of the plugin


def on_change(change_type: int, level: int, resource_id: str) -> None:
    """Results are SEG, SR and SC: no CT, so nothing comes back."""
    if change_type != orthanc.ChangeType.STABLE_SERIES:
        return
    tags = json.loads(orthanc.RestApiGet(f"/series/{resource_id}"))["MainDicomTags"]
    if tags.get("Modality") == "CT" and tags.get("Manufacturer") != "covidseg":
        order = {"Resources": [resource_id], "Asynchronous": True}
        orthanc.RestApiPost("/modalities/covidseg/store", json.dumps(order))


orthanc.RegisterOnChangeCallback(on_change)
